// Forward pass of a tile: scores, online softmax down the columns, and Oᵀ[D×lanes] += Vᵀ·P, key block by key block.
// Compiled once an instruction set (isa.h).

#include "attention.h"

#include "attention_tile.h"

namespace rlhf::cpu::RLHF_ISA {

namespace {

// Rows of probabilities as the right side of the next product.
RLHF_LANES void store_probabilities(float* to, int64_t stride, const Floats* rows, Bf16) {
  store(to, paired(rows[0], rows[1]));
  store(to + stride, paired(rows[2], rows[3]));
}
template <typename T>
RLHF_LANES void store_probabilities(T* to, int64_t stride, const Pack<T>* rows, T) {
  for (int i = 0; i < 4; ++i) store(to + i * stride, rows[i]);
}

template <typename T>
struct Softmax {  // of one vector of lanes
  Pack<T> most, sum, shrink;  // the largest score so far, Σ e^(z − most), and what older sums are worth now
};

// Scores [rows×stride] of 16 (8) lanes become probabilities; four rows at a time.
template <typename E, bool masked>
RLHF_LANES Softmax<Wide<E>> softmax(Wide<E>* scores, Wide<E>* probabilities, int64_t stride, const Span& span,
                                    const Attention<E>& task, Pack<Wide<E>> positions, Pack<Wide<E>> most) {
  using T = Wide<E>;
  using V = Pack<T>;
  const T scale = static_cast<T>(task.scale);
  const V never = V::all_of(-INFINITY), before = most;
  V each[4] = {most, most, most, most};
  for (int64_t row = 0; row < span.rows; row += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      V z = load(scores + (row + i) * stride) * scale;
      if constexpr (masked) {
        const PackMask<T> seen = sees(positions, static_cast<T>(span.position + row + i), task.causal, task.window);
        z = row + i < span.count ? select(seen, z, never) : never;
      }
      store(scores + (row + i) * stride, z);
      each[i] = larger(each[i], z);
    }
  }
  most = larger(larger(each[0], each[1]), larger(each[2], each[3]));
  const V base = select(most == never, V{}, most);  // nothing seen so far
  V sums[4] = {};
  for (int64_t row = 0; row < span.rows; row += 4, probabilities += 4 / kPair<E> * stride) {
    V p[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const V z = load(scores + (row + i) * stride);
      p[i] = exp_of_small(z - base);
      if constexpr (masked) p[i] = select(z == never, V{}, p[i]);
      sums[i] = sums[i] + p[i];
    }
    store_probabilities(probabilities, stride, p, E{});
  }
  return {most, (sums[0] + sums[1]) + (sums[2] + sums[3]), exp_of_small(before - base)};
}

template <typename T>
RLHF_LANES bool all_one(Pack<T> x) {
  const PackMask<T> other = x != Pack<T>::all_of(1);
  int64_t words[8], any = 0;
  memcpy(words, &other, sizeof words);
  for (int i = 0; i < 8; ++i) any |= words[i];
  return any == 0;
}

template <typename E>
void run(const Attention<E>& task, const Sequence& s, int64_t first, int64_t key_head, E* out, Wide<E>* lse,
         char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t size = task.size;
  const Lanes<E> lanes(task, s, first, key_head);
  const int64_t width = most_lanes(task);  // one stride for all tiles: a product is compiled once a shape
  Scratch scratch{memory};
  Unit<E>* queries = scratch.take<Unit<E>>(size / kPair<E> * width);  // Qᵀ, paired
  T* scores = scratch.take<T>(kKeys * width);
  T* probabilities = sizeof(E) == sizeof(T) ? scores : scratch.take<T>(kKeys * width);
  T* sum = scratch.take<T>(size * width);  // Oᵀ, not yet divided
  T* most = scratch.take<T>(width);
  T* total = scratch.take<T>(width);
  T* positions = scratch.take<T>(width);
  E* copy = scratch.take<E>(kKeys * size);
  T* work = scratch.take<T>(kStep * size);
  const E** rows = scratch.take<const E*>(width);
  E* zeros = scratch.take<E>(size);

  memset(zeros, 0, size * sizeof(E));
  lane_rows(task.q, lanes, zeros, rows);
  pack_transposed_paired(rows, lanes.count, size, queries, width);
  for (int64_t lane = 0; lane < lanes.count; ++lane) {
    most[lane] = -INFINITY;
    total[lane] = 0;
    positions[lane] = static_cast<T>(lanes.position(lesser(lane, lanes.used - 1)));
  }
  bool begun = false;  // the first span that is seen at all is seen by all lanes

  each_span(task, s, lanes, [&](const Span& span, bool own) {
    const int64_t key = (own ? s.begin : s.prompt) + span.key;
    const Left<E> keys = left(task.k, key, span.count, task.tokens, key_head, size, copy);
    task.product(span.rows, span.lanes, size, keys.stride, width, width, false, keys.data, queries + span.lane,
                 scores + span.lane);
    for (int64_t lane = span.lane; lane < lanes.count; lane += V::count) {
      const auto step = span.masked ? softmax<E, true> : softmax<E, false>;
      const Softmax<T> found =
          step(scores + lane, probabilities + lane, width, span, task, load(positions + lane), load(most + lane));
      store(most + lane, found.most);
      store(total + lane, fused(load(total + lane), found.shrink, found.sum));
      if (!begun || all_one(found.shrink)) continue;
      for (int64_t d = 0; d < size; ++d) store(sum + d * width + lane, load(sum + d * width + lane) * found.shrink);
    }
    const int64_t block = (own ? s.block : s.prompt_block) + span.key / kKeys;
    const E* values = task.values + (key_head * task.blocks + block) * size * kKeys + span.key % kKeys;
    task.product(size, span.lanes, span.rows, kKeys, width, width, begun, values,
                 reinterpret_cast<const Unit<E>*>(probabilities) + span.lane, sum + span.lane);
    begun = true;
  });

  for (int64_t lane = 0; lane < lanes.count; lane += V::count) {
    const V weights = load(total + lane);
    store(positions + lane, V::all_of(1) / weights);
    store(total + lane, load(most + lane) + log_of(weights) + (weights - weights));  // NaN stays NaN
  }
  store_lanes(sum, width, positions, lanes, size, task.heads, out, work);
  for (int64_t lane = 0; lane < lanes.used; ++lane) lse[lanes.row(lane) * task.heads + lanes.head(lane)] = total[lane];
}

template <typename E>
void pack(const Attention<E>& task, const Sequence& s, int64_t block, int64_t key_head, char* memory) {
  const int64_t size = task.size, first = block * kKeys, count = lesser(kKeys, s.length - first);
  Scratch scratch{memory};
  Unit<E>* work = scratch.take<Unit<E>>(kStep * size);
  E* zeros = scratch.take<E>(size);
  memset(zeros, 0, size * sizeof(E));
  const E* rows[kKeys];
  for (int64_t i = 0; i < kKeys; ++i) rows[i] = i < count ? row_of(task.v, s.begin + first + i, key_head) : zeros;
  E* out = task.values + (key_head * task.blocks + s.block + block) * size * kKeys;
  pack_transposed(rows, round_up(count, kStep * kPair<E>), size, out, kKeys, work);
}

template <typename E>
int64_t scratch_bytes(const Attention<E>& task) {
  const int64_t width = most_lanes(task), size = task.size;
  return static_cast<int64_t>(sizeof(Wide<E>)) * (2 * size * width + 2 * kKeys * width + 4 * width + 2 * kStep * size +
                                                   (kKeys + 2) * size) +
         static_cast<int64_t>(sizeof(void*)) * width + 16 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                                  \
  int64_t attention_scratch(const Attention<E>& task) { return scratch_bytes(task); }                                   \
  void pack_values(const Attention<E>& task, const Sequence& s, int64_t block, int64_t key_head, char* scratch) {       \
    pack(task, s, block, key_head, scratch);                                                                            \
  }                                                                                                                     \
  void attention(const Attention<E>& task, const Sequence& s, int64_t first, int64_t key_head, E* out, Wide<E>* lse,    \
                 char* scratch) {                                                                                       \
    run(task, s, first, key_head, out, lse, scratch);                                                                   \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
