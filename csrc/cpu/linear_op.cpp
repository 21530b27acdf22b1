// rlhf::linear for CPU tensors: checks, and threads over blocks of outputs.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "linear.h"
#include "parallel.h"
#include "pool.h"
#include "types.h"

namespace rlhf {
namespace {

using at::Tensor;

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  TORCH_CHECK_VALUE(x.dim() == 2, "x: expected shape [rows,size], got ", x.sizes());
  const int64_t rows = x.size(0), size = x.size(1), outputs = weight.dim() == 2 ? weight.size(0) : 0;
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == size && weight.scalar_type() == x.scalar_type(),
                    "weight: expected shape [outputs,", size, "] of ", x.scalar_type(), ", got ",
                    weight.sizes(), " of ", weight.scalar_type());
  TORCH_CHECK_VALUE(size % 2 == 0 && size > 0, "x: expected an even size, got ", size);
  const Tensor input = dense_rows(x), dense_weight = weight.contiguous();
  const Tensor added = dense(bias, "bias", outputs, x.scalar_type(), at::kCPU);
  const Tensor out = at::empty({rows, outputs}, x.options());
  if (out.numel() == 0) return out;
  of_type(x, "x", [&]<typename E>(E) {
    const int64_t lanes = (rows + 15) / 16 * 16;
    const Tensor packed = at::empty({lanes * size}, x.options());
    const cpu::Linear<E> task{const_data<E>(input),
                              const_data<E>(dense_weight),
                              const_data<E>(added),
                              input.stride(0),
                              rows,
                              size,
                              outputs,
                              cpu::product<E>(),
                              reinterpret_cast<cpu::Unit<E>*>(data<E>(packed)),
                              data<E>(out)};
    const int64_t scratch = RLHF_DISPATCH(linear_scratch, task);
    RLHF_DISPATCH(pack_linear, task, thread_scratch(scratch));
    const double flops = 2.0 * static_cast<double>(rows * size) * static_cast<double>(outputs);
    cpu::each_task(
        (outputs + cpu::kOutputs - 1) / cpu::kOutputs, flops, scratch,
        [&](int64_t block, char* work) { RLHF_DISPATCH(linear, task, block * cpu::kOutputs, work); });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("linear", &linear); }

}  // namespace rlhf
