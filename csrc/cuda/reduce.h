// Merging what all threads found, always in the same order: lanes, warps, blocks.
//
// A type T that is merged brings, next to it:
//   merged(T, T)                one T of two; the first is the earlier one
//   shuffled_down(T, offset)    that of the lane `offset` further on
//   fresh(const T*)             read past the first-level cache, which knows nothing of other blocks' writes
#pragma once

#include "group.h"

namespace rlhf::cuda {

// Right in lane 0.
template <typename T>
__device__ __forceinline__ T warp_merged(T mine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) mine = merged(mine, shuffled_down(mine, offset));
  return mine;
}

// Right in thread 0.
template <int kThreads, typename T>
__device__ __forceinline__ T block_merged(T mine) {
  __shared__ T parts[kThreads / kLanes];
  mine = warp_merged(mine);
  __syncthreads();  // the last use of parts is over
  if (lane() == 0) parts[warp()] = mine;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int other = 1; other < kThreads / kLanes; ++other) mine = merged(mine, parts[other]);
  return mine;
}

// Each block leaves its part and takes a ticket; the block with the last ticket merges all parts. True in its
// thread 0, and `mine` is then the whole. The tickets have to begin at 0; T{} changes nothing it is merged
// with.
template <int kThreads, typename T>
__device__ __forceinline__ bool grid_merged(T& mine, T* parts, unsigned* ticket) {
  __shared__ bool last;
  mine = block_merged<kThreads>(mine);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = mine;
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  mine = T{};
  for (unsigned part = threadIdx.x; part < gridDim.x; part += kThreads)
    mine = merged(mine, fresh(parts + part));
  mine = block_merged<kThreads>(mine);
  return threadIdx.x == 0;
}

// Sums of kSums things at once.
template <int kSums>
struct Sums {
  double of[kSums];
};
template <int kSums>
__device__ __forceinline__ Sums<kSums> merged(Sums<kSums> a, const Sums<kSums>& b) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) a.of[i] += b.of[i];
  return a;
}
template <int kSums>
__device__ __forceinline__ Sums<kSums> shuffled_down(Sums<kSums> a, int offset) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) a.of[i] = __shfl_down_sync(kWholeWarp, a.of[i], offset);
  return a;
}
template <int kSums>
__device__ __forceinline__ Sums<kSums> fresh(const Sums<kSums>* from) {
  Sums<kSums> a;
#pragma unroll
  for (int i = 0; i < kSums; ++i) a.of[i] = __ldcg(from->of + i);
  return a;
}

// 1/count, or 0: without anything valid all weights are 0.
__device__ __forceinline__ double inverse(double count) { return count == 0 ? 0 : 1 / count; }

// The sum over a group of warps (group.h), known to all of its threads.
template <int kWarps>
__device__ __forceinline__ double group_sum(double mine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) mine += __shfl_xor_sync(kWholeWarp, mine, offset);
  if constexpr (kWarps > 1) {
    __shared__ double parts[kWarps];
    __syncthreads();  // the last use of parts is over
    if (lane() == 0) parts[warp()] = mine;
    __syncthreads();
    mine = 0;
    for (double part : parts) mine += part;
  }
  return mine;
}

}  // namespace rlhf::cuda
