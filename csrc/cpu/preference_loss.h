// Preference losses with their metrics and gradients (formulas: rlhf_core/kernels/preference_loss.py).
//
// B pairs. Pointers are dense; a null one stands for an argument that was not given.
#pragma once

#include <stdint.h>

#include "../terms/preference.h"
#include "isa.h"

namespace rlhf::cpu {

template <typename T>
struct PreferenceLoss {
  const T *chosen, *rejected;                  // [B]
  const T *ref_chosen, *ref_rejected;          // [B] or null
  const T *chosen_lengths, *rejected_lengths;  // [B] or null
  PreferenceOptions<T> options;
  double weight;                     // of a pair: 1/denominator
  T *grad_chosen, *grad_rejected;  // [B] out
};

struct PreferenceSums {
  double loss, chosen, rejected, right;  // of terms, of log-ratios, of pairs the right way round
};

#define RLHF_DECLARE(ISA)                                                                                   \
  namespace ISA {                                                                                           \
  /* Sums of the log-ratios alone, for kto. */                                                              \
  PreferenceSums preference_ratios(const PreferenceLoss<float>& task, int64_t begin, int64_t end);          \
  PreferenceSums preference_ratios(const PreferenceLoss<double>& task, int64_t begin, int64_t end);         \
  PreferenceSums preference_loss(const PreferenceLoss<float>& task, int64_t begin, int64_t end);            \
  PreferenceSums preference_loss(const PreferenceLoss<double>& task, int64_t begin, int64_t end);           \
  }
RLHF_ISAS(RLHF_DECLARE)
#undef RLHF_DECLARE

}  // namespace rlhf::cpu
