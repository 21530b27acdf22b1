// Advantages of packed sequences under a shaped reward (formula: rlhf_core/kernels/gae.py).
//
// N packed tokens, B sequences. Pointers are dense; a null one stands for an argument that was not given.
#pragma once

#include <stdint.h>

#include "isa.h"

namespace rlhf::cpu {

enum class KlEstimator { k1, k2, k3 };

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
};

// Of the advantages of the valid tokens: how many, their mean, their summed squared distance from it.
struct Moments {
  int64_t count;
  double mean, squares;
};

// Sequences handled together, one a SIMD lane. Part of the definition of the statistics' order of summation,
// and so the same for every instruction set.
constexpr int64_t kRows = 16;

// Fills the outputs of the sequences [first, last), at most kRows of them, and returns their moments.
#define RLHF_DECLARE(ISA)                                                              \
  namespace ISA {                                                                      \
  Moments shaped_gae_rows(const ShapedGae<float>& task, int64_t first, int64_t last);  \
  Moments shaped_gae_rows(const ShapedGae<double>& task, int64_t first, int64_t last); \
  }
RLHF_ISAS(RLHF_DECLARE)
#undef RLHF_DECLARE

}  // namespace rlhf::cpu
