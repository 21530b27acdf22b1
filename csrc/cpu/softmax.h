// The online softmax of a tile of lanes (Milakov & Gimelshein 2018, arXiv:1805.02867), a span of keys at a
// time.
#pragma once

#include "attention_tile.h"

namespace rlhf::cpu::RLHF_ISA {

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
struct Softmax {              // of one vector of lanes
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
        const PackMask<T> seen =
            sees(positions, static_cast<T>(span.position + row + i), task.causal, task.window);
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
struct Running {  // of a tile, [·×width]
  Wide<E>*scores, *probabilities;
  Wide<E>*sum, *most, *total;  // Oᵀ [D×width], not yet divided by the total
  int64_t width;
};

template <typename E>
RLHF_LANES Running<E> running_in(Scratch& scratch, int64_t size, int64_t width) {
  using T = Wide<E>;
  Running<E> x;
  x.scores = scratch.take<T>(kKeys * width);
  x.probabilities = sizeof(E) == sizeof(T) ? x.scores : scratch.take<T>(kKeys * width);
  x.sum = scratch.take<T>(size * width);
  x.most = scratch.take<T>(width);
  x.total = scratch.take<T>(width);
  x.width = width;
  return x;
}

template <typename E>
RLHF_LANES void begin(const Running<E>& x, int64_t lanes) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    x.most[lane] = -INFINITY;
    x.total[lane] = 0;
  }
}

// Takes a span of keys in; `values` are Vᵀ [D][kKeys] from the span's first key on. Where it has `begun`, to
// what is there.
template <typename E>
RLHF_LANES void absorb(const Attention<E>& task, const Running<E>& x, const Unit<E>* queries,
                       const Left<E>& keys, const E* values, const Span& span, const Wide<E>* positions,
                       int64_t lanes, bool begun) {
  using V = Pack<Wide<E>>;
  const int64_t width = x.width;
  task.product(span.rows, span.lanes, task.size, keys.stride, width, width, false, keys.data,
               queries + span.lane, x.scores + span.lane);
  for (int64_t lane = span.lane; lane < lanes; lane += V::count) {
    const auto step = span.masked ? softmax<E, true> : softmax<E, false>;
    const Softmax<Wide<E>> found = step(x.scores + lane, x.probabilities + lane, width, span, task,
                                        load(positions + lane), load(x.most + lane));
    store(x.most + lane, found.most);
    store(x.total + lane, fused(load(x.total + lane), found.shrink, found.sum));
    if (!begun || all_one(found.shrink)) continue;
    for (int64_t d = 0; d < task.size; ++d)
      store(x.sum + d * width + lane, load(x.sum + d * width + lane) * found.shrink);
  }
  task.product(task.size, span.lanes, span.rows, kKeys, width, width, begun, values,
               reinterpret_cast<const Unit<E>*>(x.probabilities) + span.lane, x.sum + span.lane);
}

}  // namespace rlhf::cpu::RLHF_ISA
