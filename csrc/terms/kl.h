// Estimators of the KL from one sampled token, d = log π − log π_ref (formulas: rlhf_core/kernels/kl.py).
#pragma once

#include "functions.h"

namespace rlhf {

enum class KlEstimator { k1, k2, k3 };

template <typename V>
struct KlTerm {
  V value;  // nats
  V slope;  // d value / d log π
};

template <typename V>
RLHF_FN KlTerm<V> kl_term(V d, KlEstimator estimator) {
  if (estimator == KlEstimator::k1) return {d, V{} + 1};
  if (estimator == KlEstimator::k2) return {d * d / 2, d};
  const V below = exp_of(-d).minus_one;
  return {below + d, -below};
}

}  // namespace rlhf
