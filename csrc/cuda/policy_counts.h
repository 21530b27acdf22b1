// What a policy loss's weights divide by: tokens, or sequences with one (rlhf_core/kernels/aggregate.py).
#pragma once

#include "counts.h"

namespace rlhf::cuda {
namespace {  // kernels of policy_loss.cu alone

// Bytes that are not 0 among four.
__device__ __forceinline__ int set_bytes(unsigned word) {
  return __popc((((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u);
}

// Tokens of the mask.
__global__ void __launch_bounds__(kCountThreads)
    count_tokens(const uint8_t* mask, int64_t tokens, Counts<1>* counts) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kCountThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kCountThreads;
  const int64_t words = reinterpret_cast<uintptr_t>(mask) % sizeof(uint4) == 0 ? tokens / sizeof(uint4) : 0;
  int64_t mine = 0;
#pragma unroll 4
  for (int64_t word = thread; word < words; word += step) {
    const uint4 four = reinterpret_cast<const uint4*>(mask)[word];
    mine += set_bytes(four.x) + set_bytes(four.y) + set_bytes(four.z) + set_bytes(four.w);
  }
  for (int64_t token = words * sizeof(uint4) + thread; token < tokens; token += step)
    mine += mask[token] != 0;
  leave(Sums<1>{{static_cast<double>(mine)}}, counts);
}

// Sequences that have a token of the mask (null: any token). A warp looks at a sequence until it finds one.
__global__ void __launch_bounds__(kCountThreads)
    count_sequences(const uint8_t* mask, const int32_t* cu_seqlens, int64_t sequences, int64_t tokens,
                    Counts<1>* counts) {
  constexpr int kWarps = kCountThreads / kLanes;
  int64_t mine = 0;
  for (int64_t sequence = static_cast<int64_t>(blockIdx.x) * kWarps + warp(); sequence < sequences;
       sequence += static_cast<int64_t>(gridDim.x) * kWarps) {
    const Bounds bounds = bounds_of(cu_seqlens, sequence, tokens);
    bool found = false;
    for (int64_t first = bounds.begin; first < bounds.end && !found; first += kLanes) {
      const int64_t token = first + lane();
      found = __any_sync(kWholeWarp, token < bounds.end && (!mask || mask[token] != 0));
    }
    mine += lane() == 0 && found;
  }
  leave(Sums<1>{{static_cast<double>(mine)}}, counts);
}

inline cudaError_t start_count(const uint8_t* mask, int64_t tokens, Counts<1>* counts, cudaStream_t stream) {
  // 64 bytes a thread: four loads of 16 in flight.
  return launch(count_tokens, blocks_for(tokens, 64 * kCountThreads, kMaxCounts), kCountThreads, stream, mask,
                tokens, counts);
}

inline cudaError_t start_count(const uint8_t* mask, const int32_t* cu_seqlens, int64_t sequences,
                               int64_t tokens, Counts<1>* counts, cudaStream_t stream) {
  return launch(count_sequences, blocks_for(sequences, kCountThreads / kLanes, kMaxCounts), kCountThreads,
                stream, mask, cu_seqlens, sequences, tokens, counts);
}

}  // namespace
}  // namespace rlhf::cuda
