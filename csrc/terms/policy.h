// What one token adds to the clipped policy loss and its gradient (formulas: rlhf_core/kernels/policy_loss.py).
//
// "slope" is a derivative by the token's own log-prob (or value). At a tie of min or max the unclipped side counts.
#pragma once

#include "functions.h"
#include "kl.h"

namespace rlhf {

// The numbers of one call.
template <typename T>
struct PolicyOptions {
  T low, high;          // the bounds of the ratio: 1 − clip_low, 1 + clip_high
  T dual_clip;          // infinity: none
  T value_clip;         // infinity: none
  T mean, scale, shift;  // A ← (A − mean)·scale + shift; 0, 1, 0 where advantages are not whitened
  T value_coef, entropy_coef, kl_coef;
  KlEstimator estimator;
  bool cispo;
};

constexpr double kLogRatioLimit = 20;

template <typename V>
struct Ratio {
  V value, approx_kl;  // ρ = e^ℓ and e^ℓ − 1 − ℓ of the clamped log-ratio ℓ
  Mask<V> inside;      // it was not clamped: a gradient flows
};

template <typename V>
RLHF_FN Ratio<V> ratio_of(V difference) {
  const V limit = all<V>(kLogRatioLimit);
  const V log_ratio = clamp(difference, -limit, limit);
  const Exp<V> exp = exp_of(log_ratio);
  return {exp.value, exp.minus_one - log_ratio, log_ratio == difference};
}

template <typename V>
struct Objective {
  V value, slope;
  Mask<V> clipped;
};

// The advantage comes whitened.
template <typename V>
RLHF_FN Objective<V> objective_of(const Ratio<V>& ratio, V advantage, V logprob,
                                  const PolicyOptions<Scalar<V>>& options) {
  const V bounded = clamp(ratio.value, all<V>(options.low), all<V>(options.high));
  if (options.cispo) {
    const V weight = bounded * advantage;
    return {weight * logprob, weight, bounded != ratio.value};
  }
  const V free = ratio.value * advantage, bound = bounded * advantage;
  const Mask<V> clipped = bound < free;
  V value = select(clipped, bound, free);
  V slope = select(clipped, V{}, select(ratio.inside, free, V{}));
  if (options.dual_clip < Scalar<V>(INFINITY)) {
    const V least = advantage * options.dual_clip;
    // NaN must reach the loss, so the comparison is the one that is false for it.
    const V floored = select(value < least, least, value), level = select(value < least, V{}, slope);
    value = select(advantage < 0, floored, value);
    slope = select(advantage < 0, level, slope);
  }
  return {value, slope, clipped};
}

template <typename V>
struct ValueError {
  V value, slope;  // ½·max(unclipped², clipped²)
  Mask<V> clipped;
};

// Without a clip, old is the value itself.
template <typename V>
RLHF_FN ValueError<V> value_error(V value, V old, V target, const PolicyOptions<Scalar<V>>& options) {
  const V near = clamp(value, old - options.value_clip, old + options.value_clip);
  const V error = value - target, other = near - target;
  const V free = error * error, bound = other * other;
  const Mask<V> clipped = bound > free;
  return {select(clipped, bound, free) / 2, select(clipped, V{}, error), clipped};
}

}  // namespace rlhf
