// What both passes of attention do: the lanes of a tile, and which keys of a block they see.
#pragma once

#include "attention.h"
#include "tiles.h"

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

// A mask is worth a block of its own size where the causal edge passes: half of 64×64 would be computed for
// nothing.
constexpr int64_t kEdge = 32;

template <typename E>
RLHF_LANES const E* row_of(const Rows<E>& rows, int64_t row, int64_t head) {
  return rows.data + row * rows.row + head * rows.head;
}

// The queries of one sequence's tokens [first, last) under one key head; lane = token·G + head of the group.
template <typename E>
struct Lanes {
  int64_t begin, first, last;  // the sequence's first row; tokens of the sequence
  int64_t before;              // positions that its prompt takes
  int64_t key_head, group;
  int64_t used, count;  // lanes, and rounded up to whole vectors

  RLHF_MEMBER Lanes(const Attention<E>& task, const Sequence& s, int64_t from, int64_t head)
      : begin(s.begin),
        first(from),
        last(lesser(from + task.tile_tokens(), s.length)),
        before(s.prompt_length),
        key_head(head),
        group(task.group()),
        used((last - first) * group),
        count(round_up(used, kStep)) {}

  RLHF_MEMBER int64_t row(int64_t lane) const { return begin + first + lane / group; }
  RLHF_MEMBER int64_t head(int64_t lane) const { return key_head * group + lane % group; }
  RLHF_MEMBER int64_t position(int64_t lane) const { return before + first + lane / group; }
  RLHF_MEMBER int64_t earliest() const { return before + first; }
  RLHF_MEMBER int64_t latest() const { return before + last - 1; }
};

// A run of keys and how the lanes of a tile see it.
struct Span {
  int64_t key, count;   // keys [key, key + count) of their sequence
  int64_t position;     // of the first of them, as the lanes count
  int64_t rows;         // count in whole steps
  int64_t lane, lanes;  // the lanes that see any of them
  bool masked;          // some of these lanes do not see some of these rows
};

// The span that begins at `key` of `length` keys, at most to the end of its block; count 0 where no lane sees
// it.
template <typename E>
RLHF_LANES Span span_at(const Attention<E>& task, const Lanes<E>& lanes, int64_t key, int64_t length,
                        int64_t shift) {
  const int64_t earliest = lanes.earliest(), latest = lanes.latest(), far = task.window;
  Span span{key, lesser(kKeys - key % kKeys, length - key), key + shift, 0, 0, lanes.count, false};
  const bool edge = task.causal && span.position + span.count - 1 > earliest;
  if (edge) span.count = lesser(span.count, kEdge - key % kEdge);
  const int64_t end = span.position + span.count;
  if (task.causal && span.position > latest) span.lanes = 0;
  if (far && (earliest - (end - 1) >= far || span.position - latest >= far)) span.lanes = 0;
  if (task.causal && span.position > earliest && span.lanes) {
    span.lane = (span.position - earliest) * lanes.group / kStep * kStep;
    span.lanes = lanes.count - span.lane;
  }
  span.rows = round_up(span.count, kStep);
  span.masked = span.rows > span.count || (task.causal && end - 1 > earliest) ||
                (far && (latest - span.position >= far || end - 1 - earliest >= far));
  return span;
}

// Calls body(span, prompt's keys or own) for every span that the lanes see, those of the prompt first.
template <typename E, typename F>
RLHF_LANES void each_span(const Attention<E>& task, const Sequence& s, const Lanes<E>& lanes, const F& body) {
  for (int part = 0; part < 2; ++part) {
    const int64_t length = part ? s.length : s.prompt_length, shift = part ? s.prompt_length : 0;
    int64_t key = 0;
    if (task.window) key = greater(0, (lanes.earliest() - task.window + 1 - shift) / kKeys * kKeys);
    while (key < length) {
      const Span span = span_at(task, lanes, key, length, shift);
      if (span.lanes) body(span, part == 1);
      if (task.causal && span.position > lanes.latest()) break;
      key += span.count;
    }
  }
}

// Which of a vector of lanes, at these positions, see the key at `position`.
template <typename T>
RLHF_LANES PackMask<T> sees(Pack<T> lanes, T position, bool causal, int64_t window) {
  const auto all = [](T x) { return Pack<T>::all_of(x); };
  const T reach = static_cast<T>(window);
  PackMask<T> seen = causal ? lanes > all(position - 1) : lanes == lanes;
  if (window) seen = both(seen, both(lanes<all(position + reach), lanes> all(position - reach)));
  return seen;
}

// Rows [first, first + span.rows) of keys or values, on the left of a product: as they lie, or, where that
// would read past the tensor, copied.
template <typename E>
struct Left {
  const E* data;
  int64_t stride;
};
template <typename E>
RLHF_LANES Left<E> left(const Rows<E>& rows, int64_t first, int64_t count, int64_t tokens, int64_t head,
                        int64_t size, E* copy) {
  const int64_t padded = round_up(count, kStep);
  if (first + padded <= tokens) return {row_of(rows, first, head), rows.row};
  memset(copy, 0, padded * size * sizeof(E));
  for (int64_t i = 0; i < count; ++i)
    memcpy(copy + i * size, row_of(rows, first + i, head), size * sizeof(E));
  return {copy, size};
}

// Pointers to the rows of a tile's lanes; those behind the last are of zeros.
template <typename E>
RLHF_LANES void lane_rows(const Rows<E>& rows, const Lanes<E>& lanes, const E* zeros, const E** out) {
  for (int64_t lane = 0; lane < lanes.count; ++lane)
    out[lane] = lane < lanes.used ? row_of(rows, lanes.row(lane), lanes.head(lane)) : zeros;
}

// Xᵀ [D×stride] of the lanes, times factor[lane], narrowed, to rows of [N, heads, D].
template <typename E>
RLHF_LANES void store_lanes(const Wide<E>* transposed, int64_t stride, const Wide<E>* factor,
                            const Lanes<E>& lanes, int64_t size, int64_t heads, E* out, Wide<E>* work) {
  using T = Wide<E>;
  for (int64_t from = 0; from < lanes.used; from += kStep) {
    for (int64_t d = 0; d < size; d += kStep) {
      const Unit<T>* rows[kStep];
      for (int64_t i = 0; i < kStep; ++i)
        rows[i] = reinterpret_cast<const Unit<T>*>(transposed + (d + i) * stride + from);
      transpose(rows, kStep, reinterpret_cast<Unit<T>*>(work + d), size);
    }
    for (int64_t lane = from; lane < lesser(from + kStep, lanes.used); ++lane) {
      E* to = out + (lanes.row(lane) * heads + lanes.head(lane)) * size;
      const T* of = work + (lane - from) * size;
      for (int64_t d = 0; d < size; d += Pack<T>::count) store_narrow(to + d, load(of + d) * factor[lane]);
    }
  }
}

}  // namespace rlhf::cpu::RLHF_ISA
