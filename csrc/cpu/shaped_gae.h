// Advantages of packed sequences under a shaped reward (formula: rlhf_core/kernels/gae.py).
//
// N packed tokens, B sequences. Pointers are dense; a null one stands for an argument that was not given.
#pragma once

#include <stdint.h>

#include "../terms/kl.h"
#include "isa.h"

namespace rlhf::cpu {

template <typename T>
struct ShapedGae {
  const int32_t* cu_seqlens;  // [B+1]
  const T* scores;            // [B]
  const T* values;            // [N]
  const bool* mask;           // [N] or null: all true
  const T* rewards;           // [N] or null
  const T* logprobs;          // [N] or null, with ref_logprobs
  const T* ref_logprobs;      // [N] or null
  const T* bootstrap;         // [B] or null: 0
  T gamma, gamma_lam, kl_coef;
  T score_clip;  // infinity: not clipped
  KlEstimator estimator;
  T* advantages;  // [N] out
  T* returns;     // [N] out
  T* kl;          // [N] out
  bool stream;    // returns and kl go past the cache: they are larger than it
};

// Of the advantages of a sequence's valid tokens: how many, their mean, their summed squared distance from it.
struct Moments {
  int64_t count;
  double mean, squares;
};

// Fills the outputs of the sequences [first, last) and their moments [B].
#define RLHF_DECLARE(ISA)                                                                             \
  namespace ISA {                                                                                     \
  void shaped_gae(const ShapedGae<float>& task, int64_t first, int64_t last, Moments* moments);       \
  void shaped_gae(const ShapedGae<double>& task, int64_t first, int64_t last, Moments* moments);      \
  }
RLHF_ISAS(RLHF_DECLARE)
#undef RLHF_DECLARE

}  // namespace rlhf::cpu
