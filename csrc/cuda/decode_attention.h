// The CUDA side of decode_attention: what a call is made of (formula: rlhf_core/kernels/decode_attention.py).
//
// B sequences, Hq query heads, Hk key heads, D head size, S slots of the cache, P prompts of at most L
// tokens. Device pointers; strides in elements, those of D are 1. A null pointer stands for an argument not
// given.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

namespace rlhf::cuda {

enum class Float { float32, bfloat16, float16 };

struct DecodeAttention {
  int64_t sequences, heads, key_heads, size;  // B, Hq, Hk, D
  int64_t slots, prompts, prefix_slots;       // S, P, L; 0 without prompts
  Float dtype;                                // of q, keys, values, out
  float scale;
  const void* q;  // [B,Hq,D]
  int64_t q_sequence, q_head;
  const void* k;  // [B,S,Hk,D]
  int64_t k_sequence, k_slot, k_head;
  const void* v;  // [B,S,Hk,D]
  int64_t v_sequence, v_slot, v_head;
  const void* prefix_k;  // [P,L,Hk,D]
  int64_t prefix_k_prompt, prefix_k_slot, prefix_k_head;
  const void* prefix_v;  // [P,L,Hk,D]
  int64_t prefix_v_prompt, prefix_v_slot, prefix_v_head;
  const int32_t* lengths;         // [B] filled slots
  const int32_t* prefix_of;       // [B] the prompt of each, negative for none
  const int32_t* prefix_lengths;  // [P] or null: all L
  void* out;                      // [B,Hq,D] dense
};

}  // namespace rlhf::cuda

extern "C" {
size_t rlhf_decode_attention_workspace(const rlhf::cuda::DecodeAttention* task);  // bytes
// D is 32, 64, 96 or 128, and Hk divides Hq.
cudaError_t rlhf_decode_attention(const rlhf::cuda::DecodeAttention* task, void* workspace,
                                  cudaStream_t stream);
}
