// Loss, metrics and gradients of a span of tokens in one pass: every input is read once, a vector at a time, and what
// the loss adds up stays in registers. Compiled once an instruction set (isa.h).
//
// Sums are kept a lane in the dtype of the inputs for kBlock tokens and in float64 beyond, so that their rounding does
// not grow with the span.

#include "policy_loss.h"

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kAhead = 256;  // tokens prefetched

template <typename V>
struct LaneSums {
  V policy{}, value{}, entropy{}, kl{}, approx_kl{}, clipped{}, ratio{}, largest_ratio{}, value_clipped{};
  V slope{};  // of the objective by the one log-ratio of the span
};

struct SpanSums {
  double policy = 0, value = 0, entropy = 0, kl = 0;
  double approx_kl = 0, clipped = 0, ratio = 0, largest_ratio = 0, value_clipped = 0, slope = 0;

  template <typename V>
  void add(const LaneSums<V>& lanes) {
    policy += sum(lanes.policy);
    value += sum(lanes.value);
    entropy += sum(lanes.entropy);
    kl += sum(lanes.kl);
    approx_kl += sum(lanes.approx_kl);
    clipped += sum(lanes.clipped);
    ratio += sum(lanes.ratio);
    value_clipped += sum(lanes.value_clipped);
    slope += sum(lanes.slope);
    const double largest_here = largest(lanes.largest_ratio);
    largest_ratio = largest_here > largest_ratio ? largest_here : largest_ratio;
  }
};

// What is the same for every token of a span.
template <typename T>
struct Span {
  T weight;
  bool one_ratio;
  T log_ratio;  // the clamped mean, where one_ratio
};

// L tokens from `at`; with `part`, the first `count` of them.
template <typename T, bool masked, bool part>
RLHF_FN void step(const PolicyLoss<T>& task, const Span<T>& span, int64_t at, int64_t count,
                  LaneSums<Pack<T>>& sums) {
  using V = Pack<T>;
  const PolicyOptions<T>& options = task.options;
  PackMask<T> valid{};
  if constexpr (part) {
    valid = load_mask_part<T>(task.mask ? task.mask + at : nullptr, count);
  } else if constexpr (masked) {
    valid = load_mask<T>(task.mask + at);
  }
  // 0 where masked: nothing that a masked slot holds goes further.
  const auto kept = [&](V x) { return masked || part ? select(valid, x, V{}) : x; };
  const auto take = [&](const T* from) {
    // Up to ten streams at once are more than the processor follows by itself.
    __builtin_prefetch(from + at + kAhead);
    return kept(part ? load_part<T>(from + at, count) : load<T>(from + at));
  };
  const auto give = [&](T* to, V x) { part ? store_part<T>(to + at, x, count) : store<T>(to + at, x); };
  const V one = V::all_of(1);

  const V logprob = take(task.logprobs);
  V advantage = take(task.advantages);
  if (task.whiten) advantage = kept((advantage - options.mean) * options.scale + options.shift);
  const V difference = span.one_ratio ? V::all_of(span.log_ratio) : logprob - take(task.old_logprobs);
  const Ratio<V> ratio = ratio_of(difference);
  Objective<V> objective = objective_of(ratio, advantage, logprob, options);
  if (task.importance) {
    const V importance = take(task.importance);
    objective.value = objective.value * importance;
    objective.slope = objective.slope * importance;
  }
  V slope{};  // d loss / d logprob, not yet weighted
  if (span.one_ratio && !options.cispo) {
    sums.slope = sums.slope + objective.slope;
  } else {
    slope = -objective.slope;
  }
  sums.policy = sums.policy + objective.value;
  sums.approx_kl = sums.approx_kl + kept(ratio.approx_kl);
  sums.clipped = sums.clipped + kept(select(objective.clipped, one, V{}));
  const V counted = kept(ratio.value);
  sums.ratio = sums.ratio + counted;
  sums.largest_ratio = select(counted > sums.largest_ratio, counted, sums.largest_ratio);
  if (task.ref_logprobs) {
    const KlTerm<V> kl = kl_term(logprob - take(task.ref_logprobs), options.estimator);
    sums.kl = sums.kl + kl.value;
    slope = slope + kept(kl.slope) * options.kl_coef;
  }
  give(task.grad_logprobs, slope * span.weight);
  if (task.values) {
    const V value = take(task.values);
    const ValueError<V> error =
        value_error(value, task.old_values ? take(task.old_values) : value, take(task.returns), options);
    sums.value = sums.value + error.value;
    sums.value_clipped = sums.value_clipped + select(error.clipped, one, V{});
    give(task.grad_values, error.slope * (options.value_coef * span.weight));
  }
  if (task.entropy) {
    sums.entropy = sums.entropy + take(task.entropy);
    give(task.grad_entropy, kept(V::all_of(-options.entropy_coef * span.weight)));
  }
}

template <typename T, bool masked>
SpanSums pass(const PolicyLoss<T>& task, const Span<T>& span, int64_t begin, int64_t end) {
  constexpr int64_t L = Pack<T>::count;
  SpanSums total;
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t last = block + kBlock < end ? block + kBlock : end;
    LaneSums<Pack<T>> sums;
    int64_t at = block;
    for (; at + L <= last; at += L) step<T, masked, false>(task, span, at, L, sums);
    if (at < last) step<T, masked, true>(task, span, at, last - at, sums);
    total.add(sums);
  }
  return total;
}

template <typename T>
double mean_log_ratio(const PolicyLoss<T>& task, const PolicySpan& span) {
  double total = 0;
  for (int64_t token = span.begin; token < span.end; ++token)
    if (!task.mask || task.mask[token]) total += static_cast<double>(task.logprobs[token] - task.old_logprobs[token]);
  return span.valid ? total / static_cast<double>(span.valid) : 0;
}

template <typename T>
PolicySums run(const PolicyLoss<T>& task, const PolicySpan& span) {
  const T log_ratio = span.one_ratio ? static_cast<T>(mean_log_ratio(task, span)) : T(0);
  const Span<T> same{static_cast<T>(span.weight), span.one_ratio, log_ratio};
  const SpanSums sums =
      task.mask ? pass<T, true>(task, same, span.begin, span.end) : pass<T, false>(task, same, span.begin, span.end);
  if (span.one_ratio && !task.options.cispo && span.valid) {
    // Every valid token moves the mean, by 1/valid.
    const T each = static_cast<T>(-span.weight * sums.slope / static_cast<double>(span.valid));
    for (int64_t token = span.begin; token < span.end; ++token)
      if (!task.mask || task.mask[token]) task.grad_logprobs[token] += each;
  }
  return {span.weight * sums.policy, span.weight * sums.value, span.weight * sums.entropy, span.weight * sums.kl,
          sums.approx_kl, sums.clipped, sums.ratio, sums.largest_ratio, sums.value_clipped};
}

}  // namespace

PolicySums policy_loss(const PolicyLoss<float>& task, const PolicySpan& span) { return run(task, span); }
PolicySums policy_loss(const PolicyLoss<double>& task, const PolicySpan& span) { return run(task, span); }

}  // namespace rlhf::cpu::RLHF_ISA
