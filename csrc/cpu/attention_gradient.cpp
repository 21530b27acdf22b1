// Backward pass: a task is a chunk of keys under one key head. It goes through the tiles of queries that see
// the chunk, sums dK and dV, and leaves each tile its part of dQ; parts are summed in the order of the
// chunks. Nothing is added by two threads.
//
//     Pᵀ = e^(scale·K·Qᵀ − L)    dPᵀ = V·dOᵀ    dSᵀ = Pᵀ∘(dPᵀ − δ),  δ = Σ_d dO∘O − dL
//     dV += Pᵀ·dO    dK += scale·dSᵀ·Q    dQᵀ += scale·Kᵀ·dSᵀ
//
// Compiled once an instruction set (isa.h).

#include "attention.h"
#include "attention_tile.h"

namespace rlhf::cpu::RLHF_ISA {

namespace {

// Of a tile under one key head, packed once: both operands of both products that it is the right side of.
template <typename E>
struct Packed {
  Unit<E>*q_transposed, *q, *grad_transposed, *grad;  // [D/pair][lanes], [lanes/pair][D], and so of dO
  Wide<E>*lse, *delta, *positions;                    // [lanes]
};

template <typename E>
RLHF_LANES Packed<E> packed(const Attention<E>& task, char* memory) {
  const int64_t units = task.lanes() * task.size / kPair<E>, lanes = task.lanes();
  Scratch scratch{memory};
  Packed<E> x;
  x.q_transposed = scratch.take<Unit<E>>(units);
  x.q = scratch.take<Unit<E>>(units);
  x.grad_transposed = scratch.take<Unit<E>>(units);
  x.grad = scratch.take<Unit<E>>(units);
  x.lse = scratch.take<Wide<E>>(lanes);
  x.delta = scratch.take<Wide<E>>(lanes);
  x.positions = scratch.take<Wide<E>>(lanes);
  return x;
}

template <typename E>
RLHF_LANES int64_t pack_bytes(const Attention<E>& task) {
  const int64_t lanes = task.lanes();
  return round_up(4 * lanes * task.size * sizeof(E), 64) + 3 * round_up(lanes * sizeof(Wide<E>), 64) + 4 * 64;
}

template <typename E>
RLHF_LANES Packed<E> packed(const AttentionGradient<E>& task, int64_t tile, int64_t key_head) {
  const Attention<E>& forward = task.forward;
  return packed(forward, task.packs + (tile * forward.key_heads + key_head) * pack_bytes(forward));
}

template <typename E>
RLHF_LANES Wide<E>* partial(const AttentionGradient<E>& task, int64_t slot, int64_t key_head) {
  const Attention<E>& forward = task.forward;
  return task.partial + (slot * forward.key_heads + key_head) * forward.size * forward.lanes();
}

// A row that sees few keys has few roundings of dS to average, and bfloat16 would show in its gradient: such
// tiles multiply what was rounded off, too.
template <typename E>
RLHF_LANES bool is_precise(const Attention<E>& task, const Lanes<E>& lanes) {
  return sizeof(E) == 2 && (lanes.earliest() < kKeys || (task.window && task.window < kKeys));
}

// δ of such a tile as Σ_s P·dP: O, from which it follows as well, was rounded too.
template <typename E>
RLHF_LANES void exact_delta(const Attention<E>& task, const Sequence& s, const Lanes<E>& lanes,
                            int64_t key_head, const Packed<E>& x, Scratch& scratch) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t width = task.lanes(), size = task.size;
  const T scale = static_cast<T>(task.scale);
  T* scores = scratch.take<T>(kKeys * width);
  T* grads = scratch.take<T>(kKeys * width);
  E* copy = scratch.take<E>(kKeys * size);
  memset(x.delta, 0, lanes.count * sizeof(T));
  each_span(task, s, lanes, [&](const Span& span, bool own) {
    const int64_t first = (own ? s.begin : s.prompt) + span.key;
    const Left<E> keys = left(task.k, first, span.count, task.tokens, key_head, size, copy);
    task.product(span.rows, span.lanes, size, keys.stride, width, width, false, keys.data,
                 x.q_transposed + span.lane, scores + span.lane);
    const Left<E> values = left(task.v, first, span.count, task.tokens, key_head, size, copy);
    task.product(span.rows, span.lanes, size, values.stride, width, width, false, values.data,
                 x.grad_transposed + span.lane, grads + span.lane);
    for (int64_t lane = span.lane; lane < lanes.count; lane += V::count) {
      const V lse = load(x.lse + lane), positions = load(x.positions + lane);
      V sums = load(x.delta + lane);
      for (int64_t row = 0; row < span.count; ++row) {
        const V p = exp_of_small(load(scores + row * width + lane) * scale - lse);
        const V term = p * load(grads + row * width + lane);
        sums = sums + select(sees(positions, static_cast<T>(span.position + row), task.causal, task.window),
                             term, V{});
      }
      store(x.delta + lane, sums);
    }
  });
}

template <typename E>
void pack(const AttentionGradient<E>& task, const Sequence& s, const Tile& tile, int64_t index,
          int64_t key_head, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const Attention<E>& forward = task.forward;
  const int64_t size = forward.size, width = forward.lanes();
  const Lanes<E> lanes(forward, s, tile.first, key_head);
  const Packed<E> x = packed(task, index, key_head);
  Scratch scratch{memory};
  const E** rows = scratch.take<const E*>(width);
  E* zeros = scratch.take<E>(size);
  memset(zeros, 0, size * sizeof(E));

  lane_rows(forward.q, lanes, zeros, rows);
  pack_transposed_paired(rows, lanes.count, size, x.q_transposed, width);
  pack_paired(rows, lanes.count, size, x.q);
  lane_rows(task.grad_out, lanes, zeros, rows);
  pack_transposed_paired(rows, lanes.count, size, x.grad_transposed, width);
  pack_paired(rows, lanes.count, size, x.grad);
  for (int64_t lane = 0; lane < lanes.count; ++lane) {
    x.positions[lane] = static_cast<T>(lanes.position(lesser(lane, lanes.used - 1)));
    x.lse[lane] = x.delta[lane] = 0;
    if (lane >= lanes.used) continue;
    const int64_t row = lanes.row(lane), head = lanes.head(lane), at = row * forward.heads + head;
    const E* out = row_of(task.out, row, head);
    V sums{};
    for (int64_t d = 0; d < size; d += V::count)
      sums = fused(load_wide(rows[lane] + d), load_wide(out + d), sums);
    x.lse[lane] = task.lse[at];
    x.delta[lane] = static_cast<T>(sum(sums));
  }
  if (is_precise(forward, lanes)) exact_delta(forward, s, lanes, key_head, x, scratch);
  if (!task.grad_lse) return;
  for (int64_t lane = 0; lane < lanes.used; ++lane)
    x.delta[lane] -= task.grad_lse[lanes.row(lane) * forward.heads + lanes.head(lane)];
}

template <typename E>
struct Slopes {            // of one block: Sᵀ and dPᵀ become Pᵀ and dSᵀ
  Wide<E>*scores, *grads;  // [keys×width]
  E *p, *ds;               // the same as left sides of products
  Unit<E>* ds_paired;      // and as a right side
  E* ds_rest;              // what rounding took from dS, both ways; unused where products take dS as it is
  Unit<E>* ds_rest_paired;
};

template <bool precise>
RLHF_LANES void store_slopes(const Slopes<Bf16>& out, int64_t row, int64_t stride, int64_t lane,
                             const Floats* p, const Floats* ds) {
  for (int i = 0; i < 2; ++i) {
    store_narrow(out.p + (row + i) * stride + lane, p[i]);
    store_narrow(out.ds + (row + i) * stride + lane, ds[i]);
  }
  store(reinterpret_cast<float*>(out.ds_paired) + row / 2 * stride + lane, paired(ds[0], ds[1]));
  if constexpr (precise) {
    Floats rest[2];
    for (int i = 0; i < 2; ++i) {
      rest[i] = ds[i] - load_wide(out.ds + (row + i) * stride + lane);
      store_narrow(out.ds_rest + (row + i) * stride + lane, rest[i]);
    }
    store(reinterpret_cast<float*>(out.ds_rest_paired) + row / 2 * stride + lane, paired(rest[0], rest[1]));
  }
}
template <bool, typename T>
RLHF_LANES void store_slopes(const Slopes<T>& out, int64_t row, int64_t stride, int64_t lane,
                             const Pack<T>* p, const Pack<T>* ds) {
  for (int i = 0; i < 2; ++i) {
    store(out.p + (row + i) * stride + lane, p[i]);
    store(out.ds + (row + i) * stride + lane, ds[i]);
  }
}

template <typename E, bool masked, bool precise>
RLHF_LANES void slopes(const Attention<E>& task, const Slopes<E>& x, const Packed<E>& tile, const Span& span,
                       int64_t lane, int64_t stride) {
  using T = Wide<E>;
  using V = Pack<T>;
  const T scale = static_cast<T>(task.scale);
  const V lse = load(tile.lse + lane), delta = load(tile.delta + lane),
          positions = load(tile.positions + lane);
  for (int64_t row = 0; row < span.rows; row += 2) {
    V p[2], ds[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int64_t at = (row + i) * stride + lane;
      p[i] = exp_of_small(load(x.scores + at) * scale - lse);
      ds[i] = p[i] * (load(x.grads + at) - delta);
      if constexpr (masked) {
        const PackMask<T> seen =
            sees(positions, static_cast<T>(span.position + row + i), task.causal, task.window);
        p[i] = row + i < span.count ? select(seen, p[i], V{}) : V{};
        ds[i] = row + i < span.count ? select(seen, ds[i], V{}) : V{};
      }
    }
    store_slopes<precise>(x, row, stride, lane, p, ds);
  }
}

template <typename E>
struct ChunkSums {
  E* keys_transposed;       // [blocks][D][kKeys]
  Wide<E>*grad_k, *grad_v;  // [keys×D]
  Slopes<E> slopes;
  E *key_copy, *value_copy;
};

// What one tile and the chunk give each other.
template <typename E>
RLHF_LANES void visit(const AttentionGradient<E>& task, const Sequence* sequences, const Chunk& chunk,
                      const Tile& tile, int64_t index, int64_t key_head, const ChunkSums<E>& sums) {
  using V = Pack<Wide<E>>;
  const Attention<E>& forward = task.forward;
  const bool own = tile.sequence == chunk.sequence;
  const int64_t number = chunk.number - (own ? tile.own_chunk : tile.prompt_chunk);
  if (number < 0 || number >= (own ? tile.own_chunks : tile.prompt_chunks)) return;
  const Sequence& s = sequences[tile.sequence];
  const int64_t size = forward.size, width = forward.lanes(), shift = own ? s.prompt_length : 0;
  const int64_t begin = sequences[chunk.sequence].begin, end = chunk.first + chunk.count;
  const Lanes<E> lanes(forward, s, tile.first, key_head);
  const Packed<E> x = packed(task, index, key_head);
  const Slopes<E>& block = sums.slopes;
  Wide<E>* grad_q = partial(task, tile.slot + number + (own ? tile.prompt_chunks : 0), key_head);
  memset(grad_q, 0, size * width * sizeof(Wide<E>));
  const bool precise = is_precise(forward, lanes);
  for (int64_t key = chunk.first; key < end;) {
    const Span span = span_at(forward, lanes, key, end, shift);
    const int64_t place = key - chunk.first, lane = span.lane;
    key += span.count;
    if (!span.lanes) continue;
    const Left<E> keys =
        left(forward.k, begin + span.key, span.count, forward.tokens, key_head, size, sums.key_copy);
    forward.product(span.rows, span.lanes, size, keys.stride, width, width, false, keys.data,
                    x.q_transposed + lane, block.scores + lane);
    const Left<E> values =
        left(forward.v, begin + span.key, span.count, forward.tokens, key_head, size, sums.value_copy);
    forward.product(span.rows, span.lanes, size, values.stride, width, width, false, values.data,
                    x.grad_transposed + lane, block.grads + lane);
    for (int64_t at = lane; at < lanes.count; at += V::count) {
      const auto step = precise       ? slopes<E, true, true>
                        : span.masked ? slopes<E, true, false>
                                      : slopes<E, false, false>;
      step(forward, block, x, span, at, width);
    }
    const int64_t below = lane / kPair<E> * size;  // rows of a right side [lanes×D]
    forward.product(span.rows, size, span.lanes, width, size, size, true, block.p + lane, x.grad + below,
                    sums.grad_v + place * size);
    forward.product(span.rows, size, span.lanes, width, size, size, true, block.ds + lane, x.q + below,
                    sums.grad_k + place * size);
    const E* transposed = sums.keys_transposed + (place / kKeys * size) * kKeys + span.key % kKeys;
    forward.product(size, span.lanes, span.rows, kKeys, width, width, true, transposed,
                    block.ds_paired + lane, grad_q + lane);
    if (!precise) continue;
    forward.product(span.rows, size, span.lanes, width, size, size, true, block.ds_rest + lane, x.q + below,
                    sums.grad_k + place * size);
    forward.product(size, span.lanes, span.rows, kKeys, width, width, true, transposed,
                    block.ds_rest_paired + lane, grad_q + lane);
  }
}

template <typename E>
void run(const AttentionGradient<E>& task, const Sequence* sequences, const Tile* tiles, const Chunk& chunk,
         int64_t key_head, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const Attention<E>& forward = task.forward;
  const int64_t size = forward.size, width = forward.lanes(), begin = sequences[chunk.sequence].begin;
  const int64_t rows = round_up(chunk.count, kKeys);
  Scratch scratch{memory};
  ChunkSums<E> sums;
  sums.keys_transposed = scratch.take<E>(rows * size);
  sums.grad_k = scratch.take<T>(rows * size);
  sums.grad_v = scratch.take<T>(rows * size);
  sums.key_copy = scratch.take<E>(kKeys * size);
  sums.value_copy = scratch.take<E>(kKeys * size);
  Slopes<E>& block = sums.slopes;
  block.scores = scratch.take<T>(kKeys * width);
  block.grads = scratch.take<T>(kKeys * width);
  if constexpr (sizeof(E) == sizeof(T)) {
    block.p = block.scores;
    block.ds = block.grads;
    block.ds_paired = reinterpret_cast<Unit<E>*>(block.grads);
  } else {
    block.p = scratch.take<E>(kKeys * width);
    block.ds = scratch.take<E>(kKeys * width);
    block.ds_paired = scratch.take<Unit<E>>(kKeys / kPair<E> * width);
    block.ds_rest = scratch.take<E>(kKeys * width);
    block.ds_rest_paired = scratch.take<Unit<E>>(kKeys / kPair<E> * width);
  }
  Unit<E>* work = scratch.take<Unit<E>>(kStep * size);
  E* zeros = scratch.take<E>(size);
  memset(zeros, 0, size * sizeof(E));
  memset(sums.grad_k, 0, rows * size * sizeof(T));
  memset(sums.grad_v, 0, rows * size * sizeof(T));
  for (int64_t key = 0; key < chunk.count; key += kKeys) {
    const E* keys[kKeys];
    for (int64_t i = 0; i < kKeys; ++i)
      keys[i] = key + i < chunk.count ? row_of(forward.k, begin + chunk.first + key + i, key_head) : zeros;
    const int64_t count = round_up(lesser(kKeys, chunk.count - key), kStep * kPair<E>);
    pack_transposed(keys, count, size, sums.keys_transposed + key * size, kKeys, work);
  }

  for (int64_t tile = chunk.own_tile; tile < chunk.own_last; ++tile)
    visit(task, sequences, chunk, tiles[tile], tile, key_head, sums);
  for (int64_t tile = chunk.response_tile; tile < chunk.response_last; ++tile)
    visit(task, sequences, chunk, tiles[tile], tile, key_head, sums);

  const T scale = static_cast<T>(forward.scale);
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t to = ((begin + chunk.first + i) * forward.key_heads + key_head) * size, of = i * size;
    for (int64_t d = 0; d < size; d += V::count) {
      store_narrow(task.grad_k + to + d, load(sums.grad_k + of + d) * scale);
      store_narrow(task.grad_v + to + d, load(sums.grad_v + of + d));
    }
  }
}

template <typename E>
void sum_parts(const AttentionGradient<E>& task, const Sequence& s, const Tile& tile, int64_t key_head,
               char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const Attention<E>& forward = task.forward;
  const int64_t size = forward.size, width = forward.lanes(),
                slots = tile.prompt_chunks + tile.own_chunks;
  const Lanes<E> lanes(forward, s, tile.first, key_head);
  Scratch scratch{memory};
  T* work = scratch.take<T>(kStep * size);
  T* scale = scratch.take<T>(width);
  for (int64_t lane = 0; lane < width; ++lane) scale[lane] = static_cast<T>(forward.scale);
  T* total = partial(task, tile.slot, key_head);
  for (int64_t slot = 1; slot < slots; ++slot) {
    const T* part = partial(task, tile.slot + slot, key_head);
    for (int64_t d = 0; d < size; ++d)
      for (int64_t lane = 0; lane < lanes.count; lane += V::count)
        store(total + d * width + lane, load(total + d * width + lane) + load(part + d * width + lane));
  }
  store_lanes(total, width, scale, lanes, size, forward.heads, task.grad_q, work);
}

template <typename E>
int64_t scratch_bytes(const Attention<E>& task, int64_t chunk) {
  const int64_t width = task.lanes(), size = task.size, rows = round_up(chunk, kKeys);
  return static_cast<int64_t>(sizeof(Wide<E>)) *
             (3 * rows * size + 2 * kKeys * size + 6 * kKeys * width + 2 * kStep * size + width + 2 * size) +
         static_cast<int64_t>(sizeof(void*)) * width + 20 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                                                    \
  int64_t attention_pack_bytes(const Attention<E>& task) { return pack_bytes(task); }                     \
  int64_t attention_gradient_scratch(const Attention<E>& task, int64_t chunk) {                           \
    return scratch_bytes(task, chunk);                                                                    \
  }                                                                                                       \
  void pack_queries(const AttentionGradient<E>& task, const Sequence& s, const Tile& tile, int64_t index, \
                    int64_t key_head, char* scratch) {                                                    \
    pack(task, s, tile, index, key_head, scratch);                                                        \
  }                                                                                                       \
  void attention_gradient(const AttentionGradient<E>& task, const Sequence* sequences, const Tile* tiles, \
                          const Chunk& chunk, int64_t key_head, char* scratch) {                          \
    run(task, sequences, tiles, chunk, key_head, scratch);                                                \
  }                                                                                                       \
  void sum_query_gradients(const AttentionGradient<E>& task, const Sequence& s, const Tile& tile,         \
                           int64_t key_head, char* scratch) {                                             \
    sum_parts(task, s, tile, key_head, scratch);                                                          \
  }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
