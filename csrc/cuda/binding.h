// What the bindings of the CUDA ops share: numbers that lie on either side, memory for a launch, errors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../checks.h"
#include "number.h"

namespace rlhf {

// A float32 tensor on a GPU decides the device of a call.
inline at::Device device_of(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.is_cuda(), name, ": expected a CUDA tensor, got one on ", tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat, name, ": expected float32, got ",
                    tensor.scalar_type());
  return tensor.device();
}

// A number is read where it lies: on the host now, on the device by the kernel, and `held` keeps it alive.
inline cuda::Number number_on(const MaybeTensor& tensor, const char* name, at::Device device,
                              at::Tensor& held) {
  if (!tensor.has_value()) return {nullptr, 0, false};
  if (tensor->device().is_cpu()) return {nullptr, static_cast<float>(number(tensor, name, 0)), true};
  TORCH_CHECK_VALUE(tensor->numel() == 1, name, ": expected one number, got shape ", tensor->sizes());
  TORCH_CHECK_VALUE(tensor->device() == device, name, ": expected a tensor on ", device,
                    " or on the CPU, got ", tensor->device());
  held = tensor->detach().to(at::kFloat);
  return {held.const_data_ptr<float>(), 0, true};
}

inline const uint8_t* bytes(const at::Tensor& mask) {
  return reinterpret_cast<const uint8_t*>(pointer<bool>(mask));
}

inline float* output(const at::Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }

// Starts the kernels of an op on the current stream of the task's device.
template <typename Task>
void start(const char* op, cudaError_t (*launch)(const Task*, void*, cudaStream_t), size_t workspace,
           const Task& task, at::Device device) {
  // Freed at the end of this call, and not given to anyone else on this stream before the kernels have run.
  const at::Tensor space =
      at::empty({static_cast<int64_t>(workspace)}, at::TensorOptions(at::kByte).device(device));
  const cudaError_t error =
      launch(&task, space.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream(device.index()));
  TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

}  // namespace rlhf
