// Between torch's dtypes and the kernels': a kernel's E for a tensor, and a tensor's data as E.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include "products.h"

namespace rlhf {

template <typename E>
struct TorchOf {
  using type = E;
};
template <>
struct TorchOf<cpu::Bf16> {
  using type = at::BFloat16;
};

template <typename E>
E* data(const at::Tensor& x) {
  return x.defined() ? reinterpret_cast<E*>(x.mutable_data_ptr<typename TorchOf<E>::type>()) : nullptr;
}
template <typename E>
const E* const_data(const at::Tensor& x) {
  return x.defined() ? reinterpret_cast<const E*>(x.const_data_ptr<typename TorchOf<E>::type>()) : nullptr;
}

// compute(E{}) for the E that x is of.
template <typename F>
auto of_type(const at::Tensor& x, const char* name, const F& compute) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return compute(float{});
    case at::kDouble:
      return compute(double{});
    case at::kBFloat16:
      return compute(cpu::Bf16{});
    default:
      TORCH_CHECK_VALUE(false, name, ": expected float32, float64 or bfloat16, got ", x.scalar_type());
  }
}

// What sums and statistics of x are kept in.
inline at::TensorOptions wide_options(const at::Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// x, or a dense copy where its last dimension is not.
inline at::Tensor dense_rows(const at::Tensor& x) {
  return x.dim() && x.stride(-1) != 1 ? x.contiguous() : x;
}

}  // namespace rlhf
