// What every binding does with its arguments: refuse bad ones by name before memory is touched, make them dense.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <utility>

namespace rlhf {

using MaybeTensor = std::optional<at::Tensor>;

inline void check(const at::Tensor& tensor, const char* name, int64_t length, at::ScalarType dtype,
                  at::Device device) {
  TORCH_CHECK_VALUE(tensor.device() == device, name, ": expected a tensor on ", device, ", got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, name, ": expected ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == length, name, ": expected shape [", length, "], got ",
                    tensor.sizes());
}

// The tensor made dense, or undefined where it was not given.
inline at::Tensor dense(const MaybeTensor& tensor, const char* name, int64_t length, at::ScalarType dtype,
                        at::Device device) {
  if (!tensor.has_value()) return {};
  check(*tensor, name, length, dtype, device);
  return tensor->contiguous();
}

template <typename T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// Offsets of shape [B+1], dense; what they hold is checked where it can be read (offsets_on_host).
inline at::Tensor dense_offsets(const at::Tensor& cu_seqlens, at::Device device) {
  TORCH_CHECK_VALUE(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1,
                    "cu_seqlens: expected shape [B+1], got ", cu_seqlens.sizes());
  check(cu_seqlens, "cu_seqlens", cu_seqlens.size(0), at::kInt, device);
  return cu_seqlens.contiguous();
}

inline void offsets_on_host(const at::Tensor& cu_seqlens, int64_t tokens) {
  const int32_t* offsets = cu_seqlens.const_data_ptr<int32_t>();
  const int64_t last = cu_seqlens.size(0) - 1;
  TORCH_CHECK_VALUE(offsets[0] == 0, "cu_seqlens: expected to begin with 0, got ", offsets[0]);
  TORCH_CHECK_VALUE(offsets[last] == tokens, "cu_seqlens: expected to end with the ", tokens, " tokens, got ",
                    offsets[last]);
  for (int64_t row = 0; row < last; ++row)
    TORCH_CHECK_VALUE(offsets[row] <= offsets[row + 1], "cu_seqlens: expected non-decreasing offsets, got ",
                      offsets[row], " before ", offsets[row + 1]);
}

// The value that goes with a word.
template <typename T>
T choice(c10::string_view word, const char* name, std::initializer_list<std::pair<const char*, T>> choices) {
  for (const auto& [key, value] : choices)
    if (word == key) return value;
  TORCH_CHECK_VALUE(false, name, ": unknown choice ", word);
}

// A scalar tensor on the host, or what stands for one that was not given.
inline double number(const MaybeTensor& tensor, const char* name, double absent) {
  if (!tensor.has_value()) return absent;
  TORCH_CHECK_VALUE(tensor->numel() == 1, name, ": expected one number, got shape ", tensor->sizes());
  TORCH_CHECK_VALUE(tensor->device().is_cpu(), name, ": expected a CPU tensor, got ", tensor->device());
  return tensor->item().toDouble();
}

}  // namespace rlhf
