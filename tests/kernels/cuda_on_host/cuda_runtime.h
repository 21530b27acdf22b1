// The part of CUDA that csrc/cuda/ uses, for g++: the same sources on the host, a thread of a block a fiber.
//
// First in the include path, it stands in for the toolkit's header. Blocks run one after another, and the
// threads of one take turns at barriers and shuffles (emulator.cpp), both in an order that the caller
// chooses: a result that depends on it shows a race. A barrier that not all threads reach is an error.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulator {
cudaError_t run(dim3 grid, dim3 block, const std::function<void()>& thread);
void block_barrier();
void warp_barrier();
// 32 slots of 8 bytes. Two sets in turn: a lane that is one exchange ahead writes to the other one.
uint64_t* exchange();
}  // namespace emulator

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulator::run(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  memset(target, value, bytes);
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 2, cudaSuccess; }

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  static_assert(sizeof(T) <= 8);
  uint64_t* const slots = emulator::exchange();
  memcpy(slots + threadIdx.x % 32, &value, sizeof(T));
  emulator::warp_barrier();
  memcpy(&value, slots + from % 32, sizeof(T));
  return value;
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int offset) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(mask, value, lane + offset < 32 ? lane + offset : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ bits);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  unsigned all = 0;
  uint64_t* const slots = emulator::exchange();
  slots[threadIdx.x % 32] = vote;
  emulator::warp_barrier();
  for (int lane = 0; lane < 32; ++lane) all |= static_cast<unsigned>(slots[lane]) << lane;
  return all & mask;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned old = *address;
  *address = old + value;
  return old;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
