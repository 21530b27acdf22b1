// What the kernels know of threads: a group of warps shares a sequence, and a block holds one group or more.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "number.h"

namespace rlhf::cuda {

constexpr int kLanes = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ int lane() { return threadIdx.x % kLanes; }
__device__ __forceinline__ int warp() { return threadIdx.x / kLanes; }

// One warp a sequence where sequences are short or many, a whole block where they are long and few. A block
// is small where its warps do not wait for each other, so that the last ones leave less of the machine idle.
template <int kWarps>
struct Group {
  static constexpr int kThreads = kWarps == 1 ? 128 : kWarps * kLanes;  // of a block
  static constexpr int kGroups = kThreads / (kWarps * kLanes);          // in a block
  static constexpr int kWidth = kWarps * kLanes;                        // threads of a group

  __device__ static int64_t first() {
    return static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kWidth;
  }
  __device__ static int64_t step() { return static_cast<int64_t>(gridDim.x) * kGroups; }
  __device__ static int rank() { return threadIdx.x % kWidth; }
};

constexpr int kLong = 8;  // warps of a block that has one sequence

// Threads of a processor for which a kernel is compiled, that is 128 registers each. Left alone, ptxas may
// take fewer and spill.
constexpr int kRoomy = 512;

// 4096 sequences give each of 132 processors 31 warps: enough loads in flight without sharing a sequence.
inline bool warp_each(int64_t tokens, int64_t sequences) {
  return sequences >= 4096 || tokens <= 256 * sequences;
}

// Offsets cannot be checked without waiting for the device, so that bad ones are made harmless instead. They
// are 32 bits wide, and so is the index of every token that they can reach.
struct Bounds {
  int begin, end;
};
__device__ __forceinline__ Bounds bounds_of(const int32_t* cu_seqlens, int64_t sequence, int64_t tokens) {
  const int most = tokens < INT32_MAX ? static_cast<int>(tokens) : INT32_MAX;
  const int left = cu_seqlens[sequence], right = cu_seqlens[sequence + 1];
  const int begin = left < 0 ? 0 : left > most ? most : left;
  return {begin, right < begin ? begin : right > most ? most : right};
}

__device__ __forceinline__ float value_of(const Number& number) {
  return number.device ? *number.device : number.value;
}

}  // namespace rlhf::cuda
