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

// All lanes over `length` keys of one cache.
template <typename E>
RLHF_LANES bool over(const DecodeAttention<E>& task, const Rows<E>& k, const Rows<E>& v, int64_t slots, int64_t length,
                     int64_t key_head, const Running<E>& x, const Unit<E>* queries, const Wide<E>* positions, int64_t lanes,
                     bool begun, const Work<E>& work) {
  const int64_t size = task.attention.size;
  for (int64_t key = 0; key < length; key += kKeys, begun = true) {
    const int64_t count = lesser(kKeys, length - key), rows = round_up(count, kStep);
    const Span span{key, count, key, rows, 0, lanes, rows > count};
    const E* found[kKeys];
    for (int64_t i = 0; i < kKeys; ++i) found[i] = i < count ? row_of(v, key + i, key_head) : work.zeros;
    pack_transposed(found, round_up(count, kStep * kPair<E>), size, work.values, kKeys, work.units);
    absorb(task.attention, x, queries, left(k, key, count, slots, key_head, size, work.key_copy), work.values, span,
           positions, lanes, begun);
  }
  return begun;
}

template <typename E>
void run(const DecodeAttention<E>& task, const DecodeGroup& group, int64_t key_head, E* out, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const Attention<E>& a = task.attention;
  const int64_t size = a.size, heads = a.group(), used = group.count * heads;
  const int64_t width = most_lanes(a), own_width = round_up(heads, kStep), lanes = round_up(used, kStep);
  Scratch scratch{memory};
  Unit<E>* queries = scratch.take<Unit<E>>(size / kPair<E> * width);
  Unit<E>* own_queries = scratch.take<Unit<E>>(size / kPair<E> * own_width);
  const Running<E> shared = running_in<E>(scratch, size, width), own = running_in<E>(scratch, size, own_width);
  T* positions = scratch.take<T>(width);  // nobody looks at them: all keys are seen
  const E** rows = scratch.take<const E*>(greater(width, own_width));
  const Work<E> work{scratch.take<E>(kKeys * size), scratch.take<E>(kKeys * size), scratch.take<E>(size),
                     scratch.take<Unit<E>>(kStep * size)};
  memset(work.zeros, 0, size * sizeof(E));
  memset(positions, 0, width * sizeof(T));
  const auto row = [&](int64_t lane) {
    return lane < used ? row_of(a.q, group.members[lane / heads], key_head * heads + lane % heads) : work.zeros;
  };

  bool shared_begun = false;
  begin(shared, lanes);
  if (group.prompt >= 0) {
    for (int64_t lane = 0; lane < lanes; ++lane) rows[lane] = row(lane);
    pack_transposed_paired(rows, lanes, size, queries, width);
    const int64_t length = task.prefix_lengths ? task.prefix_lengths[group.prompt] : task.prefix_k.slots;
    shared_begun = over(task, cache_of(task.prefix_k, group.prompt), cache_of(task.prefix_v, group.prompt),
                        task.prefix_k.slots, length, key_head, shared, queries, positions, lanes, false, work);
  }
  for (int64_t member = 0; member < group.count; ++member) {
    const int64_t sequence = group.members[member], first = member * heads;
    begin(own, own_width);
    for (int64_t lane = 0; lane < own_width; ++lane) rows[lane] = lane < heads ? row(first + lane) : work.zeros;
    pack_transposed_paired(rows, own_width, size, own_queries, own_width);
    if (shared_begun) {
      memset(own.sum, 0, size * own_width * sizeof(T));
      for (int64_t lane = 0; lane < heads; ++lane) {
        own.most[lane] = shared.most[first + lane];
        own.total[lane] = shared.total[first + lane];
        for (int64_t d = 0; d < size; ++d) own.sum[d * own_width + lane] = shared.sum[d * width + first + lane];
      }
    }
    const bool begun = over(task, cache_of(task.k, sequence), cache_of(task.v, sequence), task.k.slots,
                            task.lengths[sequence], key_head, own, own_queries, positions, own_width, shared_begun, work);
    for (int64_t lane = 0; lane < heads; ++lane) {
      E* to = out + (sequence * a.heads + key_head * heads + lane) * size;
      T held[Pack<T>::count];
      for (int64_t d = 0; d < size; d += V::count) {
        for (int64_t i = 0; i < V::count; ++i)
          held[i] = begun ? own.sum[(d + i) * own_width + lane] / own.total[lane] : T{0};  // 0: it saw nothing
        store_narrow(to + d, load(held));
      }
    }
  }
}

template <typename E>
int64_t scratch_bytes(const DecodeAttention<E>& task) {
  const Attention<E>& a = task.attention;
  const int64_t width = most_lanes(a) + round_up(a.group(), kStep), size = a.size;
  return static_cast<int64_t>(sizeof(Wide<E>)) *
             (2 * size * width + 2 * kKeys * width + 4 * width + (2 * kKeys + 2 * kStep + 2) * size) +
         static_cast<int64_t>(sizeof(void*)) * width + 24 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                                  \
  int64_t decode_scratch(const DecodeAttention<E>& task) { return scratch_bytes(task); }                                \
  void decode_attention(const DecodeAttention<E>& task, const DecodeGroup& group, int64_t key_head, E* out, char* work) { \
    run(task, group, key_head, out, work);                                                                              \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
