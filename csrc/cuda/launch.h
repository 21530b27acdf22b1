// Starts a kernel; what went wrong comes back as a value.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rlhf::cuda {

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   const Parameters&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// How many blocks: one a share of the work, at least one (an empty batch has results too), at most `most`.
inline int64_t blocks_for(int64_t work, int64_t share, int64_t most) {
  const int64_t blocks = (work + share - 1) / share;
  return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

// Processors of the device in use, or 0.
inline int processors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 0;
}

}  // namespace rlhf::cuda
