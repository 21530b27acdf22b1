// What one pair of ranked responses adds to the ranking loss (formula: rlhf_core/kernels/ranking_loss.py).
#pragma once

#include "functions.h"

namespace rlhf {

template <typename V>
struct RankingTerm {
  V value;                       // −log σ(better − worse − margin) + center_coef·(better + worse)²
  V slope_better, slope_worse;   // d value / d score of each
  V right;                       // 1 where the better response scores higher, ½ where equal, else 0
};

template <typename V>
RLHF_FN RankingTerm<V> ranking_term(V better, V worse, V margin, Scalar<V> center_coef) {
  const V difference = better - worse, sum = better + worse;
  const NegativeLogSigmoid<V> term = negative_log_sigmoid(difference - margin);
  const V pull = sum * (2 * center_coef), one = V{} + 1;
  return {term.value + sum * sum * center_coef, pull - term.sigmoid_of_minus, pull + term.sigmoid_of_minus,
          select(difference > 0, one, select(difference == 0, one / 2, V{}))};
}

}  // namespace rlhf
