// rlhf::shaped_gae for CPU tensors: checks, outputs, threads over ranges of sequences, and the merged statistics.

#include "shaped_gae.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "parallel.h"
#include "pool.h"

namespace rlhf {
namespace {

using at::Tensor;

constexpr int64_t kStreamed = int64_t{1} << 21;  // tokens: 16 MB of returns and kl, half a usual last-level cache

// Chan, Golub, LeVeque 1979: the moments of two sets of numbers together.
cpu::Moments merged(const cpu::Moments& a, const cpu::Moments& b) {
  if (b.count == 0) return a;
  const double count = static_cast<double>(a.count + b.count);
  const double distance = b.mean - a.mean;
  return {a.count + b.count, a.mean + distance * (b.count / count),
          a.squares + b.squares + distance * distance * (a.count * (b.count / count))};
}

template <typename T>
cpu::Moments run(const cpu::ShapedGae<T>& task, int64_t sequences) {
  std::vector<cpu::Moments> parts(sequences);
  parallel_sequences(task.cu_seqlens, sequences, [&](int64_t first, int64_t last) {
    RLHF_DISPATCH(shaped_gae, task, first, last, parts.data());
  });
  cpu::Moments all{0, 0, 0};
  for (const cpu::Moments& part : parts) all = merged(all, part);
  return all;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> shaped_gae(
    const Tensor& scores, const Tensor& values, const Tensor& cu_seqlens, const MaybeTensor& mask,
    const MaybeTensor& rewards, const MaybeTensor& logprobs, const MaybeTensor& ref_logprobs,
    const MaybeTensor& bootstrap, double gamma, double lam, double kl_coef, c10::string_view kl_estimator,
    std::optional<double> score_clip) {
  const at::ScalarType dtype = values.scalar_type();
  const at::Device cpu = at::kCPU;
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "values: expected float32 or float64, got ", dtype);
  const int64_t tokens = values.numel(), sequences = scores.numel();
  const Tensor offsets = dense_offsets(cu_seqlens, cpu);
  offsets_on_host(offsets, tokens);
  check(values, "values", tokens, dtype, cpu);
  check(scores, "scores", offsets.size(0) - 1, dtype, cpu);
  TORCH_CHECK_VALUE(logprobs.has_value() == ref_logprobs.has_value(), "ref_logprobs: expected along with logprobs");
  TORCH_CHECK_VALUE(kl_coef == 0 || logprobs.has_value(), "kl_coef: needs logprobs and ref_logprobs");
  const Tensor dense_scores = scores.contiguous(), dense_values = values.contiguous();
  const Tensor dense_mask = dense(mask, "mask", tokens, at::kBool, cpu);
  const Tensor dense_rewards = dense(rewards, "rewards", tokens, dtype, cpu);
  const Tensor dense_logprobs = dense(logprobs, "logprobs", tokens, dtype, cpu);
  const Tensor dense_ref = dense(ref_logprobs, "ref_logprobs", tokens, dtype, cpu);
  const Tensor dense_bootstrap = dense(bootstrap, "bootstrap", sequences, dtype, cpu);
  const Tensor advantages = pooled_like(dense_values), returns = pooled_like(dense_values);
  const Tensor kl = pooled_like(dense_values);
  const auto estimator = choice<KlEstimator>(kl_estimator, "kl_estimator", {{"k1", KlEstimator::k1},
                                                                            {"k2", KlEstimator::k2},
                                                                            {"k3", KlEstimator::k3}});
  const auto compute = [&]<typename T>(T) {
    return run(cpu::ShapedGae<T>{offsets.const_data_ptr<int32_t>(),
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
                                 estimator,
                                 advantages.mutable_data_ptr<T>(),
                                 returns.mutable_data_ptr<T>(),
                                 kl.mutable_data_ptr<T>(),
                                 tokens >= kStreamed},
               sequences);
  };
  const cpu::Moments all = dtype == at::kFloat ? compute(float{}) : compute(double{});
  const double variance = all.count ? all.squares / static_cast<double>(all.count) : 0.0;
  const at::TensorOptions same(dtype);
  return {advantages, returns, kl, at::scalar_tensor(all.count, at::TensorOptions(at::kLong)),
          at::scalar_tensor(all.mean, same), at::scalar_tensor(variance, same)};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("shaped_gae", &shaped_gae); }

}  // namespace rlhf
