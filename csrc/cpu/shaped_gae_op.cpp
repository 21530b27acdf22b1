// rlhf::shaped_gae for CPU tensors: checks, outputs, threads over blocks of sequences, and the merged
// statistics.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>

#include <limits>
#include <vector>

#include "../ops.h"
#include "shaped_gae.h"

namespace rlhf {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

void check(const Tensor& tensor, const char* name, int64_t length, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, ": expected a CPU tensor, got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, name, ": expected ", dtype, ", got ",
                    tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == length, name, ": expected shape [", length,
                    "], got ", tensor.sizes());
}

void check_offsets(const Tensor& cu_seqlens, int64_t tokens) {
  TORCH_CHECK_VALUE(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1,
                    "cu_seqlens: expected shape [B+1], got ", cu_seqlens.sizes());
  check(cu_seqlens, "cu_seqlens", cu_seqlens.size(0), at::kInt);
  const int32_t* offsets = cu_seqlens.const_data_ptr<int32_t>();
  const int64_t last = cu_seqlens.size(0) - 1;
  TORCH_CHECK_VALUE(offsets[0] == 0, "cu_seqlens: expected to begin with 0, got ", offsets[0]);
  TORCH_CHECK_VALUE(offsets[last] == tokens, "cu_seqlens: expected to end with the ", tokens, " tokens, got ",
                    offsets[last]);
  for (int64_t row = 0; row < last; ++row)
    TORCH_CHECK_VALUE(offsets[row] <= offsets[row + 1], "cu_seqlens: expected non-decreasing, got ",
                      offsets[row], " before ", offsets[row + 1]);
}

// The tensor made dense, or undefined where it was not given.
Tensor dense(const MaybeTensor& tensor, const char* name, int64_t length, at::ScalarType dtype) {
  if (!tensor.has_value()) return {};
  check(*tensor, name, length, dtype);
  return tensor->contiguous();
}

template <typename T>
const T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

cpu::KlEstimator estimator_of(c10::string_view name) {
  TORCH_CHECK_VALUE(name == "k1" || name == "k2" || name == "k3", "kl_estimator: expected k1, k2 or k3, got ",
                    name);
  return name == "k1" ? cpu::KlEstimator::k1 : name == "k2" ? cpu::KlEstimator::k2 : cpu::KlEstimator::k3;
}

// Chan, Golub, LeVeque 1979: the moments of two sets of numbers together.
cpu::Moments merged(const cpu::Moments& a, const cpu::Moments& b) {
  if (b.count == 0) return a;
  const double count = static_cast<double>(a.count + b.count);
  const double distance = b.mean - a.mean;
  return {a.count + b.count, a.mean + distance * (b.count / count),
          a.squares + b.squares + distance * distance * (a.count * (b.count / count))};
}

// Blocks do not depend on the number of threads and are merged in order, so neither do the statistics.
template <typename T>
cpu::Moments run(const cpu::ShapedGae<T>& task, int64_t sequences) {
  const int64_t blocks = (sequences + cpu::kRows - 1) / cpu::kRows;
  std::vector<cpu::Moments> parts(blocks);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * cpu::kRows;
      parts[block] = RLHF_DISPATCH(shaped_gae_rows, task, first, std::min(first + cpu::kRows, sequences));
    }
  });
  cpu::Moments all{0, 0, 0};
  for (const cpu::Moments& part : parts) all = merged(all, part);
  return all;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> shaped_gae_cpu(
    const Tensor& scores, const Tensor& values, const Tensor& cu_seqlens, const MaybeTensor& mask,
    const MaybeTensor& rewards, const MaybeTensor& logprobs, const MaybeTensor& ref_logprobs,
    const MaybeTensor& bootstrap, double gamma, double lam, double kl_coef, c10::string_view kl_estimator,
    std::optional<double> score_clip) {
  const at::ScalarType dtype = values.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "values: expected float32 or float64, got ",
                    dtype);
  const int64_t tokens = values.numel(), sequences = scores.numel();
  const Tensor offsets = cu_seqlens.contiguous();
  check_offsets(offsets, tokens);
  check(values, "values", tokens, dtype);
  check(scores, "scores", offsets.size(0) - 1, dtype);
  TORCH_CHECK_VALUE(logprobs.has_value() == ref_logprobs.has_value(),
                    "ref_logprobs: expected along with logprobs");
  TORCH_CHECK_VALUE(kl_coef == 0 || logprobs.has_value(), "kl_coef: needs logprobs and ref_logprobs");
  const Tensor dense_scores = scores.contiguous(), dense_values = values.contiguous();
  const Tensor dense_mask = dense(mask, "mask", tokens, at::kBool);
  const Tensor dense_rewards = dense(rewards, "rewards", tokens, dtype);
  const Tensor dense_logprobs = dense(logprobs, "logprobs", tokens, dtype);
  const Tensor dense_ref = dense(ref_logprobs, "ref_logprobs", tokens, dtype);
  const Tensor dense_bootstrap = dense(bootstrap, "bootstrap", sequences, dtype);
  const Tensor advantages = at::empty_like(dense_values), returns = at::empty_like(dense_values);
  const Tensor kl = at::empty_like(dense_values);

  const auto compute = [&]<typename T>(T) {
    const cpu::ShapedGae<T> task{offsets.const_data_ptr<int32_t>(),
                                 pointer<T>(dense_scores),
                                 pointer<T>(dense_values),
                                 pointer<bool>(dense_mask),
                                 pointer<T>(dense_rewards),
                                 pointer<T>(dense_logprobs),
                                 pointer<T>(dense_ref),
                                 pointer<T>(dense_bootstrap),
                                 static_cast<T>(gamma),
                                 static_cast<T>(gamma * lam),
                                 static_cast<T>(kl_coef),
                                 static_cast<T>(score_clip.value_or(std::numeric_limits<double>::infinity())),
                                 estimator_of(kl_estimator),
                                 advantages.mutable_data_ptr<T>(),
                                 returns.mutable_data_ptr<T>(),
                                 kl.mutable_data_ptr<T>()};
    return run(task, sequences);
  };
  const cpu::Moments all = dtype == at::kFloat ? compute(float{}) : compute(double{});
  const double variance = all.count ? all.squares / static_cast<double>(all.count) : 0.0;
  return {advantages,
          returns,
          kl,
          at::scalar_tensor(all.count, at::TensorOptions(at::kLong)),
          at::scalar_tensor(all.mean, at::TensorOptions(dtype)),
          at::scalar_tensor(variance, at::TensorOptions(dtype))};
}

}  // namespace rlhf
