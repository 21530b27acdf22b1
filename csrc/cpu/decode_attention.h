// Attention of one new token a sequence over its cache and, before it, a prompt that several sequences share
// (formula: rlhf_core/kernels/decode_attention.py). The tiles are attention.h's: a prompt's keys meet the
// lanes of all its sequences at once, then each query goes on over its sequence's own cache.
#pragma once

#include "attention.h"

namespace rlhf::cpu {

template <typename E>
struct Caches {  // [sequences or prompts, slots, K, D]
  Rows<E> rows;  // of the first
  int64_t apart, slots;
};

template <typename E>
struct DecodeAttention {
  Attention<E> attention;  // its queries are [B, H, D]; keys and values come from the caches
  Caches<E> k, v, prefix_k, prefix_v;
  const int32_t *lengths, *prefix_lengths;  // [B], [P] or null: all slots
};

// Sequences that are decoded together: members of one prompt (negative: of none).
struct DecodeGroup {
  const int32_t* members;
  int64_t count;
  int32_t prompt;
};

#define RLHF_DECLARE_FOR(E)                                                                                 \
  int64_t decode_scratch(const DecodeAttention<E>& task);                                                   \
  void decode_attention(const DecodeAttention<E>& task, const DecodeGroup& group, int64_t key_head, E* out, \
                        char* scratch);

RLHF_ISAS(RLHF_DECLARE_TYPES)
#undef RLHF_DECLARE_FOR

}  // namespace rlhf::cpu
