// All pairs of a prompt, a row at a time: one response against a vector of those ranked worse. The gradients of those
// gather in the vector, its own is the row's sum. Compiled once an instruction set (isa.h).

#include "ranking_loss.h"

#include <math.h>

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

template <typename T>
void order_of(const RankingLoss<T>& task, int64_t first, int64_t last, int64_t* pairs) {
  for (int64_t prompt = first; prompt < last; ++prompt) {
    const int64_t begin = task.cu_seqlens[prompt], end = task.cu_seqlens[prompt + 1];
    int64_t total = 0;
    for (int64_t j = begin; j < end; ++j) {
      int64_t better = 0;
      for (int64_t i = begin; i < end; ++i) better += task.ranks[i] < task.ranks[j];
      // A rank that is not a number makes no pair.
      task.order[j] = task.ranks[j] == task.ranks[j] ? static_cast<T>(better) : static_cast<T>(NAN);
      total += better;
    }
    pairs[prompt] = total;
  }
}

// Rows [begin, end) against the columns [at, at + count), count ≤ L.
template <typename T>
RLHF_FN RankingSums block(const RankingLoss<T>& task, int64_t begin, int64_t end, int64_t at, int64_t count,
                          T weight) {
  using V = Pack<T>;
  const PackMask<T> there = load_mask_part<T>(nullptr, count);
  const V worse = load_part<T>(task.scores + at, count), order = load_part<T>(task.order + at, count);
  const V rating = task.rating ? load_part<T>(task.rating + at, count) : V{};
  V slopes{}, losses{}, right{};
  for (int64_t row = begin; row < end; ++row) {
    const PackMask<T> pair = both(there, order > task.order[row]);
    const V margin = task.rating ? task.rating[row] - rating : V::all_of(task.margin);
    const RankingTerm<V> term = ranking_term(V::all_of(task.scores[row]), worse, margin, task.center_coef);
    losses = losses + select(pair, term.value, V{});
    right = right + select(pair, term.right, V{});
    slopes = slopes + select(pair, term.slope_worse, V{});
    task.grad_scores[row] += static_cast<T>(sum(select(pair, term.slope_better, V{}))) * weight;
  }
  const V own = load_part<T>(task.grad_scores + at, count);
  store_part<T>(task.grad_scores + at, own + slopes * weight, count);
  return {sum(losses), sum(right)};
}

template <typename T>
void run(const RankingLoss<T>& task, int64_t first, int64_t last, const int64_t* pairs, double prompts,
         RankingSums* sums) {
  constexpr int64_t L = Pack<T>::count;
  for (int64_t prompt = first; prompt < last; ++prompt) {
    const int64_t begin = task.cu_seqlens[prompt], end = task.cu_seqlens[prompt + 1];
    for (int64_t i = begin; i < end; ++i) task.grad_scores[i] = 0;
    sums[prompt] = {0, 0};
    if (pairs[prompt] == 0) continue;
    const double share = 1 / static_cast<double>(pairs[prompt]);
    for (int64_t at = begin; at < end; at += L) {
      const int64_t count = end - at < L ? end - at : L;
      const RankingSums found = block<T>(task, begin, end, at, count, static_cast<T>(share / prompts));
      sums[prompt].loss += found.loss * share;
      sums[prompt].accuracy += found.accuracy * share;
    }
  }
}

}  // namespace

void ranking_order(const RankingLoss<float>& task, int64_t first, int64_t last, int64_t* pairs) {
  order_of(task, first, last, pairs);
}
void ranking_order(const RankingLoss<double>& task, int64_t first, int64_t last, int64_t* pairs) {
  order_of(task, first, last, pairs);
}
void ranking_loss(const RankingLoss<float>& task, int64_t first, int64_t last, const int64_t* pairs, double prompts,
                  RankingSums* sums) {
  run(task, first, last, pairs, prompts, sums);
}
void ranking_loss(const RankingLoss<double>& task, int64_t first, int64_t last, const int64_t* pairs, double prompts,
                  RankingSums* sums) {
  run(task, first, last, pairs, prompts, sums);
}

}  // namespace rlhf::cpu::RLHF_ISA
