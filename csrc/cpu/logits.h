// Log-probabilities from rows of logits that exist, and their gradient (formulas:
// rlhf_core/kernels/logprobs.py).
#pragma once

#include <stdint.h>

#include "isa.h"
#include "products.h"

namespace rlhf::cpu {

template <typename T>
struct LogitSums {  // of a row: the largest logit m, Σ e^(z−m), Σ (z−m)·e^(z−m); all after the temperature
  T most;
  double sum, moment;
};

template <typename T>
struct LogitSlopes {  // of a row: gradients of its log-prob and its entropy, and what the forward pass found
  T logprob, entropy, spread;
  T lse, lse_rest;  // two numbers of T: one would lose, far from 0, what is near it in z − lse
  int64_t target;
};

#define RLHF_DECLARE_FOR(E)                                                                    \
  LogitSums<Wide<E>> logit_sums(const E* row, int64_t vocabulary, Wide<E> inverse_temperature, \
                                bool entropy);                                                 \
  void logit_gradient(const E* row, int64_t vocabulary, Wide<E> inverse_temperature,           \
                      const LogitSlopes<Wide<E>>& given, bool entropy, E* out);

RLHF_ISAS(RLHF_DECLARE_TYPES)
#undef RLHF_DECLARE_FOR

}  // namespace rlhf::cpu
