// A group of decode_attention.h. Compiled once an instruction set (isa.h).

#include "decode_attention.h"

#include "attention_tile.h"
#include "softmax.h"

namespace rlhf::cpu::RLHF_ISA {

namespace {

template <typename E>
struct Work {
  E *key_copy, *values;  // a block's keys where they cannot be read in place, and its Vᵀ
  E* zeros;
  Unit<E>* units;
};

template <typename E>
RLHF_LANES Rows<E> cache_of(const Caches<E>& caches, int64_t index) {
  return {caches.rows.data + index * caches.apart, caches.rows.row, caches.rows.head};
}

// All lanes over `length` keys of one prompt.
template <typename E>
RLHF_LANES bool over(const DecodeAttention<E>& task, const Rows<E>& k, const Rows<E>& v, int64_t slots,
                     int64_t length, int64_t key_head, const Running<E>& x, const Unit<E>* queries,
                     const Wide<E>* positions, int64_t lanes, bool begun, const Work<E>& work) {
  const int64_t size = task.attention.size;
  for (int64_t key = 0; key < length; key += kKeys, begun = true) {
    const int64_t count = lesser(kKeys, length - key), rows = round_up(count, kStep);
    const Span span{key, count, key, rows, 0, lanes, rows > count};
    const E* found[kKeys];
    for (int64_t i = 0; i < kKeys; ++i) found[i] = i < count ? row_of(v, key + i, key_head) : work.zeros;
    pack_transposed(found, round_up(count, kStep * kPair<E>), size, work.values, kKeys, work.units);
    absorb(task.attention, x, queries, left(k, key, count, slots, key_head, size, work.key_copy), work.values,
           span, positions, lanes, begun);
  }
  return begun;
}

// Sums of the lanes of 16 vectors.
RLHF_LANES void sum_lanes(const Floats* x, float* out) {
  float transposed[kStep * kStep];
  const uint32_t* rows[kStep];
  for (int64_t i = 0; i < kStep; ++i) rows[i] = reinterpret_cast<const uint32_t*>(x + i);
  transpose(rows, kStep, reinterpret_cast<uint32_t*>(transposed), kStep);
  Floats sums[4] = {};
  for (int64_t i = 0; i < kStep; i += 4)
    for (int64_t j = 0; j < 4; ++j) sums[j] = sums[j] + load(transposed + (i + j) * kStep);
  store(out, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}
RLHF_LANES void sum_lanes(const Doubles* x, double* out) {
  for (int64_t i = 0; i < kStep; ++i) out[i] = sum(x[i]);
}

template <typename T>
struct One {  // query: the running softmax of one head
  T most, total;
  T* sum;  // [D]
};

// One query over `length` keys of its own cache: few lanes, so by the vector rather than by products of
// tiles.
template <typename E>
void alone(const DecodeAttention<E>& task, const E* query, const Rows<E>& k, const Rows<E>& v, int64_t length,
           int64_t key_head, One<Wide<E>>& x) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t size = task.attention.size;
  const T scale = static_cast<T>(task.attention.scale);
  for (int64_t begin = 0; begin < length; begin += kKeys) {
    const int64_t count = lesser(kKeys, length - begin);
    T scores[kKeys];
    V most = V::all_of(-INFINITY);
    for (int64_t i = 0; i < count; i += kStep) {
      V products[kStep] = {};
      for (int64_t j = 0; j < lesser(kStep, count - i); ++j) {
        const E* key = row_of(k, begin + i + j, key_head);
        V sums{};
        for (int64_t d = 0; d < size; d += V::count)
          sums = fused(load_wide(query + d), load_wide(key + d), sums);
        products[j] = sums;
      }
      sum_lanes(products, scores + i);
      for (int64_t j = 0; j < kStep; j += V::count) {
        const V place = lane_numbers<T>() + static_cast<T>(i + j);
        const V z = select(place < V::all_of(static_cast<T>(count)), load(scores + i + j) * scale,
                           V::all_of(-INFINITY));
        store(scores + i + j, z);
        most = larger(most, z);
      }
    }
    const T largest_yet = largest(larger(most, V::all_of(x.most)));
    const T base = largest_yet == -INFINITY ? 0 : largest_yet;
    V total{};
    for (int64_t i = 0; i < count; i += V::count) {
      const V z = load(scores + i), p = select(z == V::all_of(-INFINITY), V{}, exp_of_small(z - base));
      store(scores + i, p);
      total = total + p;
    }
    const T shrink = exp_of_small(V::all_of(x.most - base))[0];
    x.total = x.total * shrink + static_cast<T>(sum(total));
    x.most = largest_yet;
    for (int64_t d = 0; d < size; d += V::count) {
      V sums[2] = {load(x.sum + d) * shrink, V{}};
      for (int64_t i = 0; i < count; ++i)
        sums[i & 1] = fused(V::all_of(scores[i]), load_wide(row_of(v, begin + i, key_head) + d), sums[i & 1]);
      store(x.sum + d, sums[0] + sums[1]);
    }
  }
}

template <typename E>
void run(const DecodeAttention<E>& task, const DecodeGroup& group, int64_t key_head, E* out, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const Attention<E>& a = task.attention;
  const int64_t size = a.size, heads = a.group(), used = group.count * heads;
  const int64_t width = a.lanes(), lanes = round_up(used, kStep);
  Scratch scratch{memory};
  Unit<E>* queries = scratch.take<Unit<E>>(size / kPair<E> * width);
  const Running<E> shared = running_in<E>(scratch, size, width);
  T* positions = scratch.take<T>(width);  // nobody looks at them: all keys are seen
  T* own = scratch.take<T>(size);
  const E** rows = scratch.take<const E*>(width);
  const Work<E> work{scratch.take<E>(kKeys * size), scratch.take<E>(kKeys * size), scratch.take<E>(size),
                     scratch.take<Unit<E>>(kStep * size)};
  memset(work.zeros, 0, size * sizeof(E));
  memset(positions, 0, width * sizeof(T));
  for (int64_t lane = 0; lane < lanes; ++lane)
    rows[lane] =
        lane < used ? row_of(a.q, group.members[lane / heads], key_head * heads + lane % heads) : work.zeros;

  bool begun = false;
  begin(shared, lanes);
  if (group.prompt >= 0) {
    pack_transposed_paired(rows, lanes, size, queries, width);
    const int64_t length = task.prefix_lengths ? task.prefix_lengths[group.prompt] : task.prefix_k.slots;
    begun = over(task, cache_of(task.prefix_k, group.prompt), cache_of(task.prefix_v, group.prompt),
                 task.prefix_k.slots, length, key_head, shared, queries, positions, lanes, false, work);
  }
  for (int64_t lane = 0; lane < used; ++lane) {
    const int64_t sequence = group.members[lane / heads];
    One<T> x{shared.most[lane], shared.total[lane], own};
    for (int64_t d = 0; d < size; ++d) own[d] = begun ? shared.sum[d * width + lane] : T{0};
    alone(task, rows[lane], cache_of(task.k, sequence), cache_of(task.v, sequence), task.lengths[sequence],
          key_head, x);
    const bool nothing = !begun && task.lengths[sequence] == 0;
    E* to = out + (sequence * a.heads + key_head * heads + lane % heads) * size;
    for (int64_t d = 0; d < size; d += V::count)
      store_narrow(to + d, nothing ? V{} : load(own + d) / V::all_of(x.total));
  }
}

template <typename E>
int64_t scratch_bytes(const DecodeAttention<E>& task) {
  const Attention<E>& a = task.attention;
  const int64_t width = a.lanes(), size = a.size;
  return static_cast<int64_t>(sizeof(Wide<E>)) *
             (2 * size * width + 2 * kKeys * width + 4 * width + (2 * kKeys + 2 * kStep + 3) * size) +
         static_cast<int64_t>(sizeof(void*)) * width + 24 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                      \
  int64_t decode_scratch(const DecodeAttention<E>& task) { return scratch_bytes(task); }                    \
  void decode_attention(const DecodeAttention<E>& task, const DecodeGroup& group, int64_t key_head, E* out, \
                        char* work) {                                                                       \
    run(task, group, key_head, out, work);                                                                  \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
