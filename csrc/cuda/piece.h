// 16 bytes of a row of float32, bfloat16 or float16, and its numbers as float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

namespace rlhf::cuda {
namespace {

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }

// 16 bytes of a row.
template <typename T>
struct Piece {
  static constexpr int kCount = 16 / sizeof(T);
  uint4 bits;

  __device__ __forceinline__ void load(const T* from, bool aligned) {
    if (aligned) {
      bits = *reinterpret_cast<const uint4*>(from);
      return;
    }
    T each[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) each[i] = from[i];
    memcpy(&bits, each, sizeof bits);
  }
  __device__ __forceinline__ void clear() { bits = {0, 0, 0, 0}; }
  __device__ __forceinline__ void widen(float (&to)[kCount]) const {
    T each[kCount];
    memcpy(each, &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = widened(each[i]);
  }
};

}  // namespace
}  // namespace rlhf::cuda
