// A row at a time, in blocks that a first-level cache holds: the largest, then what is summed about it.
// Compiled once an instruction set (isa.h).

#include "logits.h"

#include "tiles.h"

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

constexpr int64_t kBlock = 2048;  // logits

// `count` numbers as a vector; what is missing is −∞.
template <typename E>
RLHF_LANES Pack<Wide<E>> load_some(const E* from, int64_t count) {
  using T = Wide<E>;
  if (count >= Pack<T>::count) return load_wide(from);
  E held[Pack<T>::count] = {};
  memcpy(held, from, count * sizeof(E));
  const PackMask<T> there = lane_numbers<T>() < Pack<T>::all_of(static_cast<T>(count));
  return select(there, load_wide(held), Pack<T>::all_of(-INFINITY));
}

template <typename E>
RLHF_LANES void store_some(E* to, Pack<Wide<E>> x, int64_t count) {
  if (count >= Pack<Wide<E>>::count) return store_narrow(to, x);
  E held[Pack<Wide<E>>::count];
  store_narrow(held, x);
  memcpy(to, held, count * sizeof(E));
}

// Calls body(place, 0 … 3 in turn) for vectors of [begin, end): four chains of sums that do not wait for each
// other.
template <typename V, typename F>
RLHF_LANES void each_vector(int64_t begin, int64_t end, const F& body) {
  int64_t at = begin;
  for (; at + 4 * V::count <= end; at += 4 * V::count) {
    body(at, 0);
    body(at + V::count, 1);
    body(at + 2 * V::count, 2);
    body(at + 3 * V::count, 3);
  }
  for (; at < end; at += V::count) body(at, 0);
}

template <typename E, bool entropy>
LogitSums<Wide<E>> sums(const E* row, int64_t vocabulary, Wide<E> inverse_temperature) {
  using T = Wide<E>;
  using V = Pack<T>;
  const V least = V::all_of(-87.336544f);
  LogitSums<T> all{-INFINITY, 0, 0};
  for (int64_t begin = 0; begin < vocabulary; begin += kBlock) {
    const int64_t end = lesser(begin + kBlock, vocabulary);
    V most[4];
    for (V& each : most) each = V::all_of(all.most);
    each_vector<V>(begin, end, [&](int64_t at, int turn) {
      most[turn] = larger(most[turn], load_some(row + at, end - at) * inverse_temperature);
    });
    const T found = largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
    const T base = found == -INFINITY ? 0 : found;
    V sum[4] = {}, moment[4] = {};
    each_vector<V>(begin, end, [&](int64_t at, int turn) {
      const V distance = load_some(row + at, end - at) * inverse_temperature - base,
              e = exp_of_small(distance);
      sum[turn] = sum[turn] + e;
      if constexpr (entropy) moment[turn] = fused(e, larger(least, distance), moment[turn]);  // 0·log 0 = 0
    });
    double total = ::rlhf::RLHF_ISA::sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    double spread = ::rlhf::RLHF_ISA::sum((moment[0] + moment[1]) + (moment[2] + moment[3]));
    if (all.most != -INFINITY) {
      const double moved = static_cast<double>(all.most) - base, weight = ::exp(moved);
      spread += weight > 0 ? weight * (all.moment + all.sum * moved) : 0;
      total += weight * all.sum;
    }
    all = {found, total, spread};
  }
  return all;
}

template <typename E, bool entropy>
void gradient(const E* row, int64_t vocabulary, Wide<E> inverse_temperature,
              const LogitSlopes<Wide<E>>& given, E* out) {
  using T = Wide<E>;
  using V = Pack<T>;
  const V least = V::all_of(-87.336544f), g = V::all_of(given.logprob * inverse_temperature);
  const V h = V::all_of(given.entropy * inverse_temperature), spread = V::all_of(given.spread);
  for (int64_t at = 0; at < vocabulary; at += V::count) {
    const V logprob = larger(
        least, load_some(row + at, vocabulary - at) * inverse_temperature - given.lse - given.lse_rest);
    V weight = g;
    if constexpr (entropy) weight = fused(h, logprob + spread, g);
    V slope = -(exp_of_small(logprob) * weight);
    if (const int64_t place = given.target - at; place >= 0 && place < V::count)
      slope.set(place, slope[place] + g[0]);
    store_some(out + at, slope, vocabulary - at);
  }
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                    \
  LogitSums<Wide<E>> logit_sums(const E* row, int64_t vocabulary, Wide<E> inverse_temperature,            \
                                bool entropy) {                                                           \
    return (entropy ? sums<E, true> : sums<E, false>)(row, vocabulary, inverse_temperature);              \
  }                                                                                                       \
  void logit_gradient(const E* row, int64_t vocabulary, Wide<E> inverse_temperature,                      \
                      const LogitSlopes<Wide<E>>& given, bool entropy, E* out) {                          \
    (entropy ? gradient<E, true> : gradient<E, false>)(row, vocabulary, inverse_temperature, given, out); \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
