// Log-probabilities under a linear head, and their gradients, tile by tile: logits never exist whole
// (formulas: rlhf_core/kernels/logprobs.py).
//
// N rows, H hidden size, V vocabulary. As in attention.h everything is computed transposed,
// Zᵀ[vocabulary×lanes] = W·hᵀ, a lane being a row: weights are then rows as they lie in memory, and the
// softmax runs down the columns. The vocabulary is cut into parts, of V alone: a row gives the same bits
// whatever else is in the batch.
#pragma once

#include <stdint.h>

#include "isa.h"
#include "products.h"

namespace rlhf::cpu {

constexpr int64_t kWords = 64;  // of a block of the vocabulary

template <typename E>
struct Head {
  const E *hidden, *weight;         // [N,H], [V,H], the last dimension dense; H a multiple of 32
  int64_t hidden_row, weight_row;   // strides
  const Wide<E>* bias;              // [V] or null
  int64_t size, vocabulary, lanes;  // lanes of a tile, a multiple of 16
  Wide<E> inverse_temperature;
  Product<E> product;
};

// Up to `lanes` rows, packed as both products take them: hᵀ [H/pair][lanes] and, for gradients, h
// [lanes/pair][H].
template <typename E>
struct HeadTile {
  const int64_t *rows, *targets;  // [count]
  int64_t count;
  Unit<E>*transposed, *paired;
};

// What a part of the vocabulary says of each lane: the largest logit m, Σ e^(z−m), Σ (z−m)·e^(z−m), and the
// target's logit where it is in this part.
template <typename T>
struct HeadSums {
  T *most, *sum, *moment, *target;  // [lanes]
};

template <typename T>
struct HeadSlopes {            // [count] of the tile's rows
  const T *logprob, *entropy;  // gradients of the two outputs; entropy may be null
  const T *lse, *entropies;    // the forward pass's; entropies may be null along with entropy
};

// Logits that the forward pass kept: [V, stride], and which column each lane is.
template <typename T>
struct HeadKept {
  const T* logits;  // null: computed again
  int64_t stride;
  const int64_t* columns;  // [count]
};

#define RLHF_DECLARE_FOR(E)                                                                                 \
  int64_t head_scratch(const Head<E>& head);                                                                \
  void pack_head_rows(const Head<E>& head, const HeadTile<E>& tile, char* scratch);                         \
  /* Words [first, last); keep is null or [V, stride] at the tile's first column. */                        \
  void head_sums(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t last, bool entropy,   \
                 Wide<E>* keep, int64_t stride, const HeadSums<Wide<E>>& out, char* scratch);               \
  /* Wᵀ of the words [first, first + kWords), [H][kWords]. */                                               \
  void pack_head_weight(const Head<E>& head, int64_t first, E* out, char* scratch);                         \
  /* Adds to grad_weight [V,H] and grad_bias [V] (or null); writes the part's dhᵀ [H][lanes]. */            \
  void head_gradient(const Head<E>& head, const HeadTile<E>& tile, int64_t first, int64_t last,             \
                     const E* transposed, const HeadSlopes<Wide<E>>& slopes, const HeadKept<Wide<E>>& kept, \
                     Wide<E>* grad_hidden, Wide<E>* grad_weight, Wide<E>* grad_bias, char* scratch);        \
  /* Sums `parts` of dhᵀ, `apart` numbers apart, into rows of grad_hidden [N,H]. */                         \
  void sum_head_parts(const Head<E>& head, const HeadTile<E>& tile, Wide<E>* parts, int64_t count,          \
                      int64_t apart, E* grad_hidden, char* scratch);

#define RLHF_DECLARE_PICK(T)                                                                            \
  /* Of each lane, the first word by which e^(z − lse) adds up to more than uniform[lane]; logits [V, \
   * stride]. */                                                                                        \
  void pick_words(const T* logits, int64_t stride, int64_t lanes, int64_t vocabulary, const T* lse,     \
                  const double* uniform, int64_t* words);

#define RLHF_DECLARE(ISA)   \
  namespace ISA {           \
  RLHF_DECLARE_PICK(float)  \
  RLHF_DECLARE_PICK(double) \
  }
RLHF_ISAS(RLHF_DECLARE_TYPES)
RLHF_ISAS(RLHF_DECLARE)
#undef RLHF_DECLARE
#undef RLHF_DECLARE_PICK
#undef RLHF_DECLARE_FOR

}  // namespace rlhf::cpu
