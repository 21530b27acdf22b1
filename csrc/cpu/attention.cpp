// Forward pass of a tile: scores, online softmax down the columns, and Oᵀ[D×lanes] += Vᵀ·P, key block by key
// block. Compiled once an instruction set (isa.h).

#include "attention.h"

#include "attention_tile.h"
#include "softmax.h"

namespace rlhf::cpu::RLHF_ISA {

namespace {

template <typename E>
void run(const Attention<E>& task, const Sequence& s, int64_t first, int64_t key_head, E* out, Wide<E>* lse,
         char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t size = task.size;
  const Lanes<E> lanes(task, s, first, key_head);
  const int64_t width = task.lanes();  // one stride for all tiles: a product is compiled once a shape
  Scratch scratch{memory};
  Unit<E>* queries = scratch.take<Unit<E>>(size / kPair<E> * width);  // Qᵀ, paired
  const Running<E> running = running_in<E>(scratch, size, width);
  T* positions = scratch.take<T>(width);
  E* copy = scratch.take<E>(kKeys * size);
  T* work = scratch.take<T>(kStep * size);
  const E** rows = scratch.take<const E*>(width);
  E* zeros = scratch.take<E>(size);

  memset(zeros, 0, size * sizeof(E));
  lane_rows(task.q, lanes, zeros, rows);
  pack_transposed_paired(rows, lanes.count, size, queries, width);
  for (int64_t lane = 0; lane < lanes.count; ++lane)
    positions[lane] = static_cast<T>(lanes.position(lesser(lane, lanes.used - 1)));
  begin(running, lanes.count);
  bool begun = false;  // the first span that is seen at all is seen by all lanes

  each_span(task, s, lanes, [&](const Span& span, bool own) {
    const int64_t key = (own ? s.begin : s.prompt) + span.key;
    const int64_t block = (own ? s.block : s.prompt_block) + span.key / kKeys;
    const E* values = task.values + (key_head * task.blocks + block) * size * kKeys + span.key % kKeys;
    absorb(task, running, queries, left(task.k, key, span.count, task.tokens, key_head, size, copy), values,
           span, positions, lanes.count, begun);
    begun = true;
  });

  for (int64_t lane = 0; lane < lanes.count; lane += V::count) {
    const V weights = load(running.total + lane);
    store(positions + lane, V::all_of(1) / weights);
    store(running.total + lane,
          load(running.most + lane) + log_of(weights) + (weights - weights));  // NaN stays NaN
  }
  store_lanes(running.sum, width, positions, lanes, size, task.heads, out, work);
  for (int64_t lane = 0; lane < lanes.used; ++lane)
    lse[lanes.row(lane) * task.heads + lanes.head(lane)] = running.total[lane];
}

template <typename E>
void pack(const Attention<E>& task, const Sequence& s, int64_t block, int64_t key_head, char* memory) {
  const int64_t size = task.size, first = block * kKeys, count = lesser(kKeys, s.length - first);
  Scratch scratch{memory};
  Unit<E>* work = scratch.take<Unit<E>>(kStep * size);
  E* zeros = scratch.take<E>(size);
  memset(zeros, 0, size * sizeof(E));
  const E* rows[kKeys];
  for (int64_t i = 0; i < kKeys; ++i)
    rows[i] = i < count ? row_of(task.v, s.begin + first + i, key_head) : zeros;
  E* out = task.values + (key_head * task.blocks + s.block + block) * size * kKeys;
  pack_transposed(rows, round_up(count, kStep * kPair<E>), size, out, kKeys, work);
}

template <typename E>
int64_t scratch_bytes(const Attention<E>& task) {
  const int64_t width = task.lanes(), size = task.size;
  return static_cast<int64_t>(sizeof(Wide<E>)) *
             (2 * size * width + 2 * kKeys * width + 4 * width + 2 * kStep * size + (kKeys + 2) * size) +
         static_cast<int64_t>(sizeof(void*)) * width + 16 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                 \
  int64_t attention_scratch(const Attention<E>& task) { return scratch_bytes(task); }                  \
  void pack_values(const Attention<E>& task, const Sequence& s, int64_t block, int64_t key_head,       \
                   char* scratch) {                                                                    \
    pack(task, s, block, key_head, scratch);                                                           \
  }                                                                                                    \
  void attention(const Attention<E>& task, const Sequence& s, int64_t first, int64_t key_head, E* out, \
                 Wide<E>* lse, char* scratch) {                                                        \
    run(task, s, first, key_head, out, lse, scratch);                                                  \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
