// rlhf::shaped_gae for CUDA tensors: checks, outputs, launch.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "binding.h"
#include "shaped_gae.h"

namespace rlhf {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> shaped_gae(
    const Tensor& scores, const Tensor& values, const Tensor& cu_seqlens, const MaybeTensor& mask,
    const MaybeTensor& rewards, const MaybeTensor& logprobs, const MaybeTensor& ref_logprobs,
    const MaybeTensor& bootstrap, double gamma, double lam, double kl_coef, c10::string_view kl_estimator,
    std::optional<double> score_clip) {
  const at::Device device = device_of(values, "values");
  const int64_t tokens = values.numel(), sequences = scores.numel();
  const Tensor offsets = dense_offsets(cu_seqlens, device);
  const auto per_token = [&](const MaybeTensor& tensor, const char* name) {
    return dense(tensor, name, tokens, at::kFloat, device);
  };
  const Tensor v = per_token(values, "values"), r = per_token(rewards, "rewards");
  const Tensor x = per_token(logprobs, "logprobs"), ref = per_token(ref_logprobs, "ref_logprobs");
  const Tensor m = dense(mask, "mask", tokens, at::kBool, device);
  const Tensor s = dense(scores, "scores", offsets.size(0) - 1, at::kFloat, device);
  const Tensor last = dense(bootstrap, "bootstrap", sequences, at::kFloat, device);
  TORCH_CHECK_VALUE(x.defined() == ref.defined(), "ref_logprobs: expected along with logprobs");
  TORCH_CHECK_VALUE(kl_coef == 0 || x.defined(), "kl_coef: needs logprobs and ref_logprobs");
  const auto estimator =
      choice<KlEstimator>(kl_estimator, "kl_estimator",
                          {{"k1", KlEstimator::k1}, {"k2", KlEstimator::k2}, {"k3", KlEstimator::k3}});

  const c10::cuda::CUDAGuard guard(device);
  const Tensor advantages = at::empty_like(v), returns = at::empty_like(v), kl = at::empty_like(v);
  const Tensor count = at::empty({}, v.options().dtype(at::kLong));
  const Tensor mean = at::empty({}, v.options()), var = at::empty({}, v.options());
  cuda::ShapedGae task{};
  task.tokens = tokens;
  task.sequences = sequences;
  task.cu_seqlens = offsets.const_data_ptr<int32_t>();
  task.scores = pointer<float>(s);
  task.values = pointer<float>(v);
  task.mask = bytes(m);
  task.rewards = pointer<float>(r);
  task.logprobs = pointer<float>(x);
  task.ref_logprobs = pointer<float>(ref);
  task.bootstrap = pointer<float>(last);
  task.gamma = static_cast<float>(gamma);
  task.gamma_lam = static_cast<float>(gamma * lam);
  task.kl_coef = static_cast<float>(kl_coef);
  task.score_clip = static_cast<float>(score_clip.value_or(std::numeric_limits<double>::infinity()));
  task.estimator = estimator;
  task.advantages = output(advantages);
  task.returns = output(returns);
  task.kl = output(kl);
  task.count = count.mutable_data_ptr<int64_t>();
  task.mean = output(mean);
  task.var = output(var);
  start("shaped_gae", &rlhf_shaped_gae, rlhf_shaped_gae_workspace(), task, device);
  return {advantages, returns, kl, count, mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CUDA, library) { library.impl("shaped_gae", &shaped_gae); }

}  // namespace rlhf
