// The clipped policy loss with its metrics and gradients (formula: rlhf_core/kernels/policy_loss.py).
//
// N packed tokens. Pointers are dense; a null one stands for an argument that was not given.
#pragma once

#include <stdint.h>

#include "../terms/policy.h"
#include "isa.h"

namespace rlhf::cpu {

template <typename T>
struct PolicyLoss {
  const T *logprobs, *old_logprobs, *advantages;  // [N]
  const bool* mask;                               // [N] or null: all true
  const T *values, *old_values, *returns;         // [N] or null
  const T *entropy, *ref_logprobs, *importance;   // [N] or null
  PolicyOptions<T> options;
  bool whiten;
  T *grad_logprobs, *grad_values, *grad_entropy;  // [N] out, the last two null where there is nothing to learn
};

// Tokens with one weight: a chunk of the batch, or a sequence.
struct PolicySpan {
  int64_t begin, end;
  int64_t valid;   // how many of them count
  double weight;   // of each
  bool one_ratio;  // GSPO: the ratio of all of them is that of the mean
};

// The first four times the weight, the others plain sums over the valid tokens.
struct PolicySums {
  double policy, value, entropy, kl;
  double approx_kl, clipped, ratio, largest_ratio, value_clipped;
};

#define RLHF_DECLARE(ISA)                                                            \
  namespace ISA {                                                                    \
  PolicySums policy_loss(const PolicyLoss<float>& task, const PolicySpan& span);     \
  PolicySums policy_loss(const PolicyLoss<double>& task, const PolicySpan& span);    \
  }
RLHF_ISAS(RLHF_DECLARE)
#undef RLHF_DECLARE

}  // namespace rlhf::cpu
