// What one pair adds to a preference loss and its gradient (formulas: rlhf_core/kernels/preference_loss.py).
//
// c, r: log-ratios of the chosen and the rejected response, already divided by their lengths where the kind does so.
#pragma once

#include "functions.h"

namespace rlhf {

enum class PreferenceKind { dpo, hinge, ipo, kto, orpo, simpo };

template <typename T>
struct PreferenceOptions {
  PreferenceKind kind;
  T beta, smoothing, margin;
  T z_chosen, z_rejected;  // kto's: max(0, batch mean of the log-ratio)
  T epsilon;               // orpo's log-probs are at most −this
};

template <typename V>
struct PreferenceTerm {
  V value, slope_chosen, slope_rejected;
};

// log(p/(1−p)) of log p, and its slope.
template <typename V>
struct LogOdds {
  V value, slope;
};
template <typename V>
RLHF_FN LogOdds<V> log_odds(V logprob, Scalar<V> epsilon) {
  const V highest = V{} - epsilon;
  const V below = at_most(logprob, highest);
  const V complement = V{} - exp_of(below).minus_one;  // 1 − p
  return {below - log_of(complement), select(logprob > highest, V{}, 1 / complement)};
}

template <typename V>
RLHF_FN PreferenceTerm<V> preference_term(V c, V r, const PreferenceOptions<Scalar<V>>& options) {
  using T = Scalar<V>;
  const T beta = options.beta;
  const V h = (c - r) * beta - options.margin;
  switch (options.kind) {
    case PreferenceKind::hinge: {
      const V slope = select(h < 1, all<V>(beta), V{});
      return {select(h < 1, 1 - h, V{}), -slope, slope};
    }
    case PreferenceKind::ipo: {
      const V distance = c - r - T(1) / (2 * beta);
      return {distance * distance, 2 * distance, -2 * distance};
    }
    case PreferenceKind::kto: {
      const V better = negative_log_sigmoid((c - options.z_rejected) * beta).sigmoid_of_minus;
      const V worse = negative_log_sigmoid((options.z_chosen - r) * beta).sigmoid_of_minus;
      const T half = beta / 2;
      return {(better + worse) / 2, -half * (better * (1 - better)), half * (worse * (1 - worse))};
    }
    case PreferenceKind::orpo: {
      const LogOdds<V> odds_c = log_odds(c, options.epsilon), odds_r = log_odds(r, options.epsilon);
      const NegativeLogSigmoid<V> gap = negative_log_sigmoid(odds_c.value - odds_r.value);
      const V slope = gap.sigmoid_of_minus * beta;
      return {gap.value * beta - c, -1 - slope * odds_c.slope, slope * odds_r.slope};
    }
    default: {  // dpo and simpo
      const NegativeLogSigmoid<V> right = negative_log_sigmoid(h);
      const V wrong = right.value + h;  // −log σ(−h)
      const V slope = (options.smoothing - right.sigmoid_of_minus) * beta;
      return {right.value * (1 - options.smoothing) + wrong * options.smoothing, slope, -slope};
    }
  }
}

}  // namespace rlhf
