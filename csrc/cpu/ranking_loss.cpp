// All pairs of a prompt, a response at a time against a vector of the others: each of those is the better or the worse
// of the pair, and gathers its own gradient in its lane. Every pair is met twice; the loss counts it once. Compiled once
// an instruction set (isa.h).

#include "ranking_loss.h"

#include <math.h>

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

// `count` lanes; the others hold whatever lies behind in memory, where there is any.
template <typename T>
RLHF_FN Pack<T> load_some(const T* from, int64_t count, int64_t left) {
  return left >= Pack<T>::count ? load(from) : load_part(from, count);
}

template <typename T>
void order_of(const RankingLoss<T>& task, int64_t first, int64_t last, int64_t* pairs) {
  const Doubles one = Doubles::all_of(1);
  for (int64_t prompt = first; prompt < last; ++prompt) {
    const int64_t begin = task.cu_seqlens[prompt], end = task.cu_seqlens[prompt + 1];
    double total = 0;
    for (int64_t at = begin; at < end; at += Doubles::count) {
      const int64_t count = end - at < Doubles::count ? end - at : Doubles::count;
      const Doubles rank = load_some(task.ranks + at, count, task.responses - at);
      Doubles better{};
      for (int64_t i = begin; i < end; ++i) better = better + select(rank > task.ranks[i], one, Doubles{});
      // A rank that is not a number makes no pair.
      better = select(rank == rank, better, Doubles::all_of(NAN));
      for (int64_t lane = 0; lane < count; ++lane) {
        const double here = better[lane];
        task.order[at + lane] = static_cast<T>(here);
        total += here == here ? here : 0;
      }
    }
    pairs[prompt] = static_cast<int64_t>(total);
  }
}

// Responses [begin, end) against `count` of them, from `at`.
template <typename T>
RLHF_FN RankingSums block(const RankingLoss<T>& task, int64_t begin, int64_t end, int64_t at, int64_t count,
                          T weight) {
  using V = Pack<T>;
  const PackMask<T> there = lane_numbers<T>() < static_cast<T>(count);
  const int64_t left = task.responses - at;
  const V scores = load_some(task.scores + at, count, left), order = load_some(task.order + at, count, left);
  const V rating = task.rating ? load_some(task.rating + at, count, left) : V{};
  V slopes{}, losses{}, right{};
  for (int64_t i = begin; i < end; ++i) {
    const V score = V::all_of(task.scores[i]);
    const PackMask<T> worse = both(there, order > task.order[i]), better = both(there, order < task.order[i]);
    V margin = V::all_of(task.margin);
    if (task.rating) margin = select(better, rating - task.rating[i], task.rating[i] - rating);
    const RankingTerm<V> term =
        ranking_term(select(better, scores, score), select(better, score, scores), margin, task.center_coef);
    slopes = slopes + select(better, term.slope_better, select(worse, term.slope_worse, V{}));
    losses = losses + select(worse, term.value, V{});
    right = right + select(worse, term.right, V{});
  }
  store_part<T>(task.grad_scores + at, slopes * weight, count);
  return {sum(losses), sum(right)};
}

template <typename T>
void run(const RankingLoss<T>& task, int64_t first, int64_t last, const int64_t* pairs, double prompts,
         RankingSums* sums) {
  constexpr int64_t L = Pack<T>::count;
  for (int64_t prompt = first; prompt < last; ++prompt) {
    const int64_t begin = task.cu_seqlens[prompt], end = task.cu_seqlens[prompt + 1];
    const double share = pairs[prompt] ? 1 / static_cast<double>(pairs[prompt]) : 0;
    sums[prompt] = {0, 0};
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
