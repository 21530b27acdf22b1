// Pairs [begin, end), a vector at a time: log-ratios, the term of the kind, gradients. Compiled once an instruction set
// (isa.h).

#include "preference_loss.h"

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

template <typename V>
struct Side {
  V ratio, length;
};

template <typename T>
RLHF_FN Pack<T> load_some(const T* from, int64_t count) {
  return count == Pack<T>::count ? load(from) : load_part(from, count);
}

template <typename T>
RLHF_FN void store_some(T* to, Pack<T> lanes, int64_t count) {
  count == Pack<T>::count ? store(to, lanes) : store_part(to, lanes, count);
}

template <typename T>
RLHF_FN Side<Pack<T>> side(const T* own, const T* reference, const T* lengths, int64_t at, int64_t count) {
  using V = Pack<T>;
  V ratio = load_some(own + at, count), length = V::all_of(1);
  if (reference) ratio = ratio - load_some(reference + at, count);
  if (lengths) {
    length = at_least(load_some(lengths + at, count), length);
    ratio = ratio / length;
  }
  return {ratio, length};
}

template <typename T, bool terms>
PreferenceSums run(const PreferenceLoss<T>& task, int64_t begin, int64_t end) {
  using V = Pack<T>;
  const V one = V::all_of(1);
  Doubles chosen{}, rejected{}, losses{}, rights{};
  for (int64_t at = begin; at < end; at += V::count) {
    const int64_t count = end - at < V::count ? end - at : V::count;
    const PackMask<T> there = lane_numbers<T>() < static_cast<T>(count);
    const Side<V> c = side(task.chosen, task.ref_chosen, task.chosen_lengths, at, count);
    const Side<V> r = side(task.rejected, task.ref_rejected, task.rejected_lengths, at, count);
    chosen = chosen + widened(select(there, c.ratio, V{}));
    rejected = rejected + widened(select(there, r.ratio, V{}));
    if constexpr (terms) {
      const PreferenceTerm<V> term = preference_term(c.ratio, r.ratio, task.options);
      const V right = select(c.ratio > r.ratio, one, select(c.ratio == r.ratio, one / 2, V{}));
      const T weight = static_cast<T>(task.weight);
      losses = losses + widened(select(there, term.value, V{}));
      rights = rights + widened(select(there, right, V{}));
      store_some(task.grad_chosen + at, term.slope_chosen * weight / c.length, count);
      store_some(task.grad_rejected + at, term.slope_rejected * weight / r.length, count);
    }
  }
  return {sum(losses), sum(chosen), sum(rejected), sum(rights)};
}

}  // namespace

PreferenceSums preference_ratios(const PreferenceLoss<float>& task, int64_t begin, int64_t end) {
  return run<float, false>(task, begin, end);
}
PreferenceSums preference_ratios(const PreferenceLoss<double>& task, int64_t begin, int64_t end) {
  return run<double, false>(task, begin, end);
}
PreferenceSums preference_loss(const PreferenceLoss<float>& task, int64_t begin, int64_t end) {
  return run<float, true>(task, begin, end);
}
PreferenceSums preference_loss(const PreferenceLoss<double>& task, int64_t begin, int64_t end) {
  return run<double, true>(task, begin, end);
}

}  // namespace rlhf::cpu::RLHF_ISA
