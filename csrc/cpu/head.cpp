// The tiles of head.h. Compiled once an instruction set (isa.h).

#include "head.h"

#include "tiles.h"

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

constexpr int64_t kPiece = 256;

template <typename E>
RLHF_LANES int64_t lanes_of(const HeadTile<E>& tile) {
  return round_up(tile.count, kStep);
}

// Pointers to a tile's rows; those behind the last are of zeros.
template <typename E>
RLHF_LANES void tile_rows(const Head<E>& head, const HeadTile<E>& tile, const E* zeros, const E** out) {
  for (int64_t lane = 0; lane < lanes_of(tile); ++lane)
    out[lane] = lane < tile.count ? head.hidden + tile.rows[lane] * head.hidden_row : zeros;
}

template <typename E>
void pack_rows(const Head<E>& head, const HeadTile<E>& tile, char* memory) {
  Scratch scratch{memory};
  E* zeros = scratch.take<E>(head.size);
  const E** rows = scratch.take<const E*>(head.lanes);
  memset(zeros, 0, head.size * sizeof(E));
  tile_rows(head, tile, zeros, rows);
  pack_transposed_paired(rows, lanes_of(tile), head.size, tile.transposed, head.lanes);
  if (tile.paired) pack_paired(rows, lanes_of(tile), head.size, tile.paired);
}

// Zᵀ of `count` words from `first` on, not yet scaled, to out [kWords][stride].
template <typename E>
RLHF_LANES void multiply(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t count,
                         Wide<E>* out, int64_t stride, E* copy) {
  const int64_t padded = round_up(count, kStep);
  const E* weight = head.weight + first * head.weight_row;
  int64_t row = head.weight_row;
  if (first + padded > head.vocabulary) {  // a product takes whole steps, and must not read past the weights
    memset(copy, 0, padded * head.size * sizeof(E));
    for (int64_t i = 0; i < count; ++i) memcpy(copy + i * head.size, weight + i * row, head.size * sizeof(E));
    weight = copy;
    row = head.size;
  }
  // In pieces of the hidden size: a product sums one after another, and short sums are closer.
  for (int64_t d = 0; d < head.size; d += kPiece)
    head.product(padded, lanes_of(tile), lesser(kPiece, head.size - d), row, head.lanes, stride, d > 0,
                 weight + d, tile.transposed + d / kPair<E> * head.lanes, out);
}

template <typename E>
RLHF_LANES Pack<Wide<E>> logit(const Head<E>& head, Pack<Wide<E>> product, int64_t word) {
  return (head.bias ? product + head.bias[word] : product) * head.inverse_temperature;
}

// Calls body(i, 0 or 1 in turn) for i below count: two chains of sums that do not wait for each other.
template <typename F>
RLHF_LANES void each_pair(int64_t count, const F& body) {
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    body(i, 0);
    body(i + 1, 1);
  }
  if (i < count) body(i, 0);
}

template <typename E, bool entropy>
void sums(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t last, Wide<E>* keep,
          int64_t stride, const HeadSums<Wide<E>>& out, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const V never = V::all_of(-INFINITY), least = V::all_of(-87.336544f);
  Scratch scratch{memory};
  T* block = scratch.take<T>(kWords * head.lanes);
  E* copy = scratch.take<E>(kWords * head.size);
  for (int64_t lane = 0; lane < lanes_of(tile); ++lane) {
    out.most[lane] = -INFINITY;
    out.sum[lane] = out.moment[lane] = 0;
  }
  for (int64_t word = first; word < last; word += kWords) {
    const int64_t count = lesser(kWords, last - word), width = keep ? stride : head.lanes;
    T* z = keep ? keep + word * stride : block;
    multiply(head, tile, word, count, z, width, copy);
    for (int64_t lane = 0; lane < lanes_of(tile); lane += V::count) {
      const V before = load(out.most + lane);
      V most[2] = {before, before};
      each_pair(count, [&](int64_t i, int turn) {
        const V x = logit(head, load(z + i * width + lane), word + i);
        store(z + i * width + lane, x);
        most[turn] = larger(most[turn], x);
      });
      const V largest_yet = larger(most[0], most[1]), base = select(largest_yet == never, V{}, largest_yet);
      V sum[2] = {}, moment[2] = {};
      each_pair(count, [&](int64_t i, int turn) {
        const V distance = load(z + i * width + lane) - base, e = exp_of_small(distance);
        sum[turn] = sum[turn] + e;
        if constexpr (entropy) moment[turn] = fused(e, larger(least, distance), moment[turn]);  // 0·log 0 = 0
      });
      const V moved = larger(least, before - base), shrink = exp_of_small(moved),
              old = load(out.sum + lane) * shrink;
      store(out.sum + lane, old + (sum[0] + sum[1]));
      if constexpr (entropy)
        store(out.moment + lane,
              fused(old, moved, load(out.moment + lane) * shrink) + (moment[0] + moment[1]));
      store(out.most + lane, largest_yet);
    }
    for (int64_t lane = 0; lane < tile.count; ++lane)
      if (const int64_t at = tile.targets[lane] - word; at >= 0 && at < count)
        out.target[lane] = z[at * width + lane];
  }
}

template <typename E>
void pack_weight(const Head<E>& head, int64_t first, E* out, char* memory) {
  Scratch scratch{memory};
  Unit<E>* work = scratch.take<Unit<E>>(kStep * head.size);
  E* zeros = scratch.take<E>(head.size);
  memset(zeros, 0, head.size * sizeof(E));
  const E* rows[kWords];
  for (int64_t i = 0; i < kWords; ++i)
    rows[i] = first + i < head.vocabulary ? head.weight + (first + i) * head.weight_row : zeros;
  pack_transposed(rows, kWords, head.size, out, kWords, work);
}

// The slopes of a block as the left side of a product, and as its right side.
RLHF_LANES void store_slopes(Bf16* plain, uint32_t* paired_rows, int64_t row, int64_t stride, int64_t lane,
                             const Floats* rows) {
  for (int i = 0; i < 2; ++i) store_narrow(plain + (row + i) * stride + lane, rows[i]);
  store(reinterpret_cast<float*>(paired_rows) + row / 2 * stride + lane, paired(rows[0], rows[1]));
}
template <typename T>
RLHF_LANES void store_slopes(T* plain, Unit<T>*, int64_t row, int64_t stride, int64_t lane,
                             const Pack<T>* rows) {
  for (int i = 0; i < 2; ++i) store(plain + (row + i) * stride + lane, rows[i]);
}

// dz = (g·(1[word = target] − p) − h·p·(log p + entropy)) / temperature, of two words.
template <typename E, bool entropy>
RLHF_LANES void block_slopes(const Head<E>& head, const Wide<E>* z, int64_t word, int64_t count, int64_t lane,
                             const HeadSlopes<Wide<E>>& by_lane, const Wide<E>* targets, E* plain,
                             Unit<E>* paired_rows, Wide<E>* by_word) {
  using T = Wide<E>;
  using V = Pack<T>;
  const V lse = load(by_lane.lse + lane), target = load(targets + lane), least = V::all_of(-87.336544f);
  const V g = load(by_lane.logprob + lane) * head.inverse_temperature;
  V h{}, entropies{};
  if constexpr (entropy) {
    h = load(by_lane.entropy + lane) * head.inverse_temperature;
    entropies = load(by_lane.entropies + lane);
  }
  for (int64_t row = 0; row < round_up(count, kStep); row += 2) {
    V both[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const V logprob = larger(least, load(z + (row + i) * head.lanes + lane) - lse),
              p = exp_of_small(logprob);
      V weight = g;
      if constexpr (entropy) weight = fused(h, logprob + entropies, g);
      const V hit = select(target == V::all_of(static_cast<T>(word + row + i)), g, V{});
      both[i] = row + i < count ? hit - p * weight : V{};
      if (by_word) store(by_word + (row + i) * V::count, load(by_word + (row + i) * V::count) + both[i]);
    }
    store_slopes(plain, paired_rows, row, head.lanes, lane, both);
  }
}

// The target's slope is as a rule the largest of its row, and bfloat16 would show: what rounding took from it
// is added apart. Products of wider numbers round nothing off.
template <typename T>
RLHF_LANES void add_rest(const Head<T>&, const HeadTile<T>&, int64_t, int64_t, const T*, const HeadSlopes<T>&,
                         const T*, T*, T*) {}
RLHF_LANES void add_rest(const Head<Bf16>& head, const HeadTile<Bf16>& tile, int64_t word, int64_t count,
                         const float* z, const HeadSlopes<float>& by_lane, const Bf16* rounded,
                         float* grad_hidden, float* grad_weight) {
  for (int64_t lane = 0; lane < tile.count; ++lane) {
    const int64_t target = tile.targets[lane], at = (target - word) * head.lanes + lane;
    if (target < word || target >= word + count) continue;
    const float logprob = z[at] - by_lane.lse[lane], p = ::expf(logprob);
    const float weight =
        by_lane.logprob[lane] + (p > 0 ? by_lane.entropy[lane] * (logprob + by_lane.entropies[lane]) : 0);
    const float slope = (by_lane.logprob[lane] - p * weight) * head.inverse_temperature;
    const uint32_t bits = static_cast<uint32_t>(rounded[at].bits) << 16;
    const float rest = slope - same_bits<float>(bits);
    const Bf16 *row = head.hidden + tile.rows[lane] * head.hidden_row,
               *weights = head.weight + target * head.weight_row;
    float held[Floats::count];
    for (int64_t d = 0; d < head.size; d += Floats::count) {
      float* to = grad_weight + target * head.size + d;
      store(to, load(to) + load_wide(row + d) * rest);
      store(held, load_wide(weights + d) * rest);
      for (int64_t i = 0; i < Floats::count; ++i) grad_hidden[(d + i) * head.lanes + lane] += held[i];
    }
  }
}

template <typename E, bool entropy>
void gradient(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t last, const E* transposed,
              const HeadSlopes<Wide<E>>& slopes, const HeadKept<Wide<E>>& kept, Wide<E>* grad_hidden,
              Wide<E>* grad_weight, Wide<E>* grad_bias, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t lanes = lanes_of(tile), width = head.lanes, size = head.size;
  Scratch scratch{memory};
  T* z = scratch.take<T>(kWords * width);
  E* plain = sizeof(E) == sizeof(T) ? reinterpret_cast<E*>(z) : scratch.take<E>(kWords * width);
  Unit<E>* right = sizeof(E) == sizeof(T) ? reinterpret_cast<Unit<E>*>(z)
                                          : scratch.take<Unit<E>>(kWords / kPair<E> * width);
  E* copy = scratch.take<E>(kWords * size);
  T* by_word = scratch.take<T>(kWords * V::count);  // sums of slopes, a vector a word
  T* padded[5];
  const T* given[4] = {slopes.logprob, slopes.entropy, slopes.lse, slopes.entropies};
  for (T*& each : padded) each = scratch.take<T>(width);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const bool used = lane < tile.count;
    for (int i = 0; i < 4; ++i) padded[i][lane] = used && given[i] ? given[i][lane] : 0;
    padded[4][lane] = used ? static_cast<T>(tile.targets[lane]) : -1;
  }
  const HeadSlopes<T> by_lane{padded[0], padded[1], padded[2], padded[3]};
  memset(grad_hidden, 0, size * width * sizeof(T));
  for (int64_t word = first; word < last; word += kWords, transposed += size * kWords) {
    const int64_t count = lesser(kWords, last - word), rows = round_up(count, kStep);
    if (kept.logits) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t lane = 0; lane < tile.count; ++lane)
          z[i * width + lane] = kept.logits[(word + i) * kept.stride + kept.columns[lane]];
      for (int64_t i = 0; i < count; ++i)
        for (int64_t lane = tile.count; lane < lanes; ++lane) z[i * width + lane] = 0;
    } else {
      multiply(head, tile, word, count, z, width, copy);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t lane = 0; lane < lanes; lane += V::count)
          store(z + i * width + lane, logit(head, load(z + i * width + lane), word + i));
    }
    if (grad_bias) memset(by_word, 0, kWords * V::count * sizeof(T));
    for (int64_t lane = 0; lane < lanes; lane += V::count)
      block_slopes<E, entropy>(head, z, word, count, lane, by_lane, padded[4], plain, right,
                               grad_bias ? by_word : nullptr);
    head.product(rows, size, lanes, width, size, size, true, plain, tile.paired, grad_weight + word * size);
    head.product(size, lanes, rows, kWords, width, width, true, transposed, right, grad_hidden);
    add_rest(head, tile, word, count, z, by_lane, plain, grad_hidden, grad_weight);
    if (grad_bias)
      for (int64_t i = 0; i < count; ++i)
        grad_bias[word + i] += static_cast<T>(sum(load(by_word + i * V::count)));
  }
}

template <typename E>
void sum_parts(const Head<E>& head, const HeadTile<E>& tile, Wide<E>* parts, int64_t count, int64_t apart,
               E* grad_hidden, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t size = head.size, width = head.lanes;
  Scratch scratch{memory};
  T* work = scratch.take<T>(kStep * kStep);
  for (int64_t part = 1; part < count; ++part)
    for (int64_t d = 0; d < size; ++d)
      for (int64_t lane = 0; lane < lanes_of(tile); lane += V::count) {
        T* to = parts + d * width + lane;
        store(to, load(to) + load(to + part * apart));
      }
  for (int64_t from = 0; from < tile.count; from += kStep)
    for (int64_t d = 0; d < size; d += kStep) {
      const Unit<T>* rows[kStep];
      for (int64_t i = 0; i < kStep; ++i)
        rows[i] = reinterpret_cast<const Unit<T>*>(parts + (d + i) * width + from);
      transpose(rows, kStep, reinterpret_cast<Unit<T>*>(work), kStep);
      for (int64_t lane = from; lane < lesser(from + kStep, tile.count); ++lane)
        for (int64_t i = 0; i < kStep; i += V::count)
          store_narrow(grad_hidden + tile.rows[lane] * size + d + i, load(work + (lane - from) * kStep + i));
    }
}

// A block's probabilities are summed for a vector of lanes; the lane that ends in it looks again, word by
// word. Blocks add up in float64: in float32 the last words of a large vocabulary would lose their share.
template <typename T>
void pick(const T* logits, int64_t stride, int64_t lanes, int64_t vocabulary, const T* lse,
          const double* uniform, int64_t* words) {
  using V = Pack<T>;
  for (int64_t lane = 0; lane < lanes; lane += V::count) {
    const int64_t count = lesser(V::count, lanes - lane);
    double reached[V::count] = {};
    int64_t open = count;
    for (int64_t i = 0; i < count; ++i) words[lane + i] = -1;
    const V norm = load_part(lse + lane, count);
    for (int64_t first = 0; first < vocabulary && open; first += kWords) {
      const int64_t last = lesser(first + kWords, vocabulary);
      V sum{};
      for (int64_t word = first; word < last; ++word)
        sum = sum + exp_of_small(load(logits + word * stride + lane) - norm);
      for (int64_t i = 0; i < count; ++i) {
        if (words[lane + i] >= 0) continue;
        const double before = reached[i], wanted = uniform[lane + i];
        reached[i] += static_cast<double>(sum[i]);
        if (!(reached[i] > wanted)) continue;
        double so_far = before;
        for (int64_t word = first; word < last && so_far <= wanted; ++word) {
          const double p = ::exp(static_cast<double>(logits[word * stride + lane + i]) -
                                 static_cast<double>(lse[lane + i]));
          if (p > 0) words[lane + i] = word;
          so_far += p;
        }
        --open;
      }
    }
    for (int64_t i = 0; i < count; ++i)  // rounding left a little of 1 to nobody
      for (int64_t word = vocabulary - 1; words[lane + i] < 0 && word >= 0; --word)
        if (logits[word * stride + lane + i] > -INFINITY || word == 0) words[lane + i] = word;
  }
}

template <typename E>
int64_t scratch_bytes(const Head<E>& head) {
  return static_cast<int64_t>(sizeof(Wide<E>)) *
             (3 * kWords * head.lanes + 16 * kWords + (kWords + kStep + 2) * head.size + 8 * head.lanes) +
         static_cast<int64_t>(sizeof(void*)) * head.lanes + 16 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                      \
  int64_t head_scratch(const Head<E>& head) { return scratch_bytes(head); }                                 \
  void pack_head_rows(const Head<E>& head, const HeadTile<E>& tile, char* scratch) {                        \
    pack_rows(head, tile, scratch);                                                                         \
  }                                                                                                         \
  void head_sums(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t last, bool entropy,   \
                 Wide<E>* keep, int64_t stride, const HeadSums<Wide<E>>& out, char* scratch) {              \
    (entropy ? sums<E, true> : sums<E, false>)(head, tile, first, last, keep, stride, out, scratch);        \
  }                                                                                                         \
  void pack_head_weight(const Head<E>& head, int64_t first, E* out, char* scratch) {                        \
    pack_weight(head, first, out, scratch);                                                                 \
  }                                                                                                         \
  void head_gradient(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t last,             \
                     const E* transposed, const HeadSlopes<Wide<E>>& slopes, const HeadKept<Wide<E>>& kept, \
                     Wide<E>* grad_hidden, Wide<E>* grad_weight, Wide<E>* grad_bias, char* scratch) {       \
    (slopes.entropy ? gradient<E, true> : gradient<E, false>)(head, tile, first, last, transposed, slopes,  \
                                                              kept, grad_hidden, grad_weight, grad_bias,    \
                                                              scratch);                                     \
  }                                                                                                         \
  void sum_head_parts(const Head<E>& head, const HeadTile<E>& tile, Wide<E>* parts, int64_t count,          \
                      int64_t apart, E* grad_hidden, char* scratch) {                                       \
    sum_parts(head, tile, parts, count, apart, grad_hidden, scratch);                                       \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

#define RLHF_DEFINE(T)                                                                              \
  void pick_words(const T* logits, int64_t stride, int64_t lanes, int64_t vocabulary, const T* lse, \
                  const double* uniform, int64_t* words) {                                          \
    pick(logits, stride, lanes, vocabulary, lse, uniform, words);                                   \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
