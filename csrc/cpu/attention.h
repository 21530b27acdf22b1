// Attention over packed sequences, tile by tile (formula: rlhf_core/kernels/attention.py; Dao et al. 2022,
// arXiv:2205.14135).
//
// N packed tokens, H query heads, K key heads, G = H/K query heads of one key head, D head size.
//
// Everything is computed transposed: Sᵀ[keys×lanes] = K·Qᵀ, a lane being one query token and head. The keys
// are then rows as they lie in memory, the softmax runs down the columns, a vector of lanes at a time, and P
// is at hand for the next product. A tile has the queries of one sequence that share a key head. Its keys
// come in blocks counted from the start of their own sequence: what a row gives does not depend on what else
// is in the batch.
#pragma once

#include <stdint.h>

#include "isa.h"
#include "products.h"

namespace rlhf::cpu {

constexpr int64_t kKeys = 64;   // of a block: a tile of scores is 16 KB, half a first-level cache
constexpr int64_t kLanes = 64;  // of a tile, or G where that is more

struct Sequence {
  int64_t begin, length;          // rows
  int64_t prompt, prompt_length;  // rows of the prompt it continues; length 0: none
  int64_t block, prompt_block;    // the first block of its own keys, of its prompt's
};

template <typename E>
struct Rows {  // of [N, heads, D]; the last dimension is dense
  const E* data;
  int64_t row, head;  // strides
};

template <typename E>
struct Attention {
  Rows<E> q, k, v;
  int64_t tokens, heads, key_heads, size, blocks;  // blocks: of keys, over all sequences
  double scale;
  bool causal;
  int64_t window;  // 0: none
  Product<E> product;
  E* values;  // [K, blocks, D, kKeys]: Vᵀ, filled by pack_values

  // Inlined wherever they are called: the linker would keep one copy, perhaps of another instruction set (isa.h).
#define RLHF_HERE inline __attribute__((always_inline))
  RLHF_HERE int64_t group() const { return heads / key_heads; }
  RLHF_HERE int64_t tile_tokens() const { return group() < kLanes ? kLanes / group() : 1; }
  RLHF_HERE int64_t lanes() const { return (tile_tokens() * group() + 15) / 16 * 16; }  // most that a tile has
#undef RLHF_HERE
};

// What the backward pass needs beside: gradients in, and of each tile what is packed once and used against
// many blocks.
template <typename E>
struct AttentionGradient {
  Attention<E> forward;
  Rows<E> out, grad_out;
  const Wide<E>*lse, *grad_lse;  // [N, H]; grad_lse may be null
  E *grad_q, *grad_k, *grad_v;   // [N, H or K, D] out
  Wide<E>* partial;              // [slots, K, D, lanes]: dQᵀ by chunk
  char* packs;                   // [tiles, K]
};

// Keys [first, first + count) of a sequence, whose gradients one task sums.
struct Chunk {
  int64_t sequence, number, first, count;  // the number-th of its sequence
  int64_t own_tile, own_last;              // tiles [own_tile, own_last) are its sequence's
  int64_t response_tile, response_last;    // and these its responses', where it is a prompt
};

// Queries from the first-th token of a sequence on, and the chunks that they see; each of these gives a part
// of dQ, at the slots from `slot` on, the prompt's chunks first.
struct Tile {
  int64_t sequence, first, slot;
  int64_t prompt_chunk, prompt_chunks, own_chunk, own_chunks;  // first and count
};

#define RLHF_DECLARE_FOR(E)                                                                               \
  int64_t attention_scratch(const Attention<E>& task);                                                    \
  void pack_values(const Attention<E>& task, const Sequence& sequence, int64_t block, int64_t key_head,   \
                   char* scratch);                                                                        \
  void attention(const Attention<E>& task, const Sequence& sequence, int64_t first, int64_t key_head,     \
                 E* out, Wide<E>* lse, char* scratch);                                                    \
  int64_t attention_pack_bytes(const Attention<E>& task);                                                 \
  int64_t attention_gradient_scratch(const Attention<E>& task, int64_t chunk);                            \
  void pack_queries(const AttentionGradient<E>& task, const Sequence& sequence, const Tile& tile,         \
                    int64_t index, int64_t key_head, char* scratch);                                      \
  void attention_gradient(const AttentionGradient<E>& task, const Sequence* sequences, const Tile* tiles, \
                          const Chunk& chunk, int64_t key_head, char* scratch);                           \
  void sum_query_gradients(const AttentionGradient<E>& task, const Sequence& sequence, const Tile& tile,  \
                           int64_t key_head, char* scratch);

RLHF_ISAS(RLHF_DECLARE_TYPES)
#undef RLHF_DECLARE_FOR

}  // namespace rlhf::cpu
