// rlhf::policy_loss for CUDA tensors: checks, outputs, launch.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "binding.h"
#include "policy_loss.h"

namespace rlhf {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> policy_loss(
    const Tensor& logprobs, const Tensor& old_logprobs, const Tensor& advantages, const MaybeTensor& mask,
    const MaybeTensor& values, const MaybeTensor& old_values, const MaybeTensor& returns,
    const MaybeTensor& entropy, const MaybeTensor& ref_logprobs, const MaybeTensor& importance,
    const MaybeTensor& cu_seqlens, const MaybeTensor& mean, const MaybeTensor& var,
    const MaybeTensor& denominator, c10::string_view objective, c10::string_view level,
    c10::string_view aggregate, c10::string_view kl_estimator, double clip_low, double clip_high,
    std::optional<double> dual_clip, std::optional<double> value_clip, double value_coef, double entropy_coef,
    double kl_coef, bool shift_mean) {
  const at::Device device = device_of(logprobs, "logprobs");
  const int64_t tokens = logprobs.numel();
  const auto per_token = [&](const MaybeTensor& tensor, const char* name) {
    return dense(tensor, name, tokens, at::kFloat, device);
  };
  const Tensor x = per_token(logprobs, "logprobs"), old = per_token(old_logprobs, "old_logprobs");
  const Tensor a = per_token(advantages, "advantages"), m = dense(mask, "mask", tokens, at::kBool, device);
  const Tensor v = per_token(values, "values"), v_old = per_token(old_values, "old_values");
  const Tensor r = per_token(returns, "returns"), h = per_token(entropy, "entropy");
  const Tensor ref = per_token(ref_logprobs, "ref_logprobs"), w = per_token(importance, "importance");
  TORCH_CHECK_VALUE(!v.defined() || r.defined(), "returns: expected along with values");
  TORCH_CHECK_VALUE(mean.has_value() == var.has_value(), "var: expected along with mean");
  TORCH_CHECK_VALUE(aggregate != "constant" || denominator, "denominator: expected with aggregate=constant");
  const bool clips_values = value_clip.has_value() && v_old.defined();
  const double none = std::numeric_limits<double>::infinity();

  const c10::cuda::CUDAGuard guard(device);
  cuda::PolicyLoss task{};
  task.level = choice<cuda::Level>(level, "level",
                                   {{"token", cuda::Level::token}, {"sequence", cuda::Level::sequence}});
  task.aggregate = choice<cuda::Aggregate>(aggregate, "aggregate",
                                           {{"token", cuda::Aggregate::token},
                                            {"sequence", cuda::Aggregate::sequence},
                                            {"constant", cuda::Aggregate::constant}});
  Tensor offsets;
  if (task.level == cuda::Level::sequence || task.aggregate == cuda::Aggregate::sequence) {
    TORCH_CHECK_VALUE(cu_seqlens.has_value(), "cu_seqlens: expected offsets of the sequences");
    offsets = dense_offsets(*cu_seqlens, device);
    task.sequences = offsets.size(0) - 1;
    task.cu_seqlens = offsets.const_data_ptr<int32_t>();
  }
  const PolicyOptions<float> options{
      static_cast<float>(1 - clip_low),
      static_cast<float>(1 + clip_high),
      static_cast<float>(dual_clip.value_or(none)),
      static_cast<float>(clips_values ? *value_clip : none),
      0,
      1,
      0,
      static_cast<float>(value_coef),
      static_cast<float>(entropy_coef),
      static_cast<float>(kl_coef),
      choice<KlEstimator>(kl_estimator, "kl_estimator",
                          {{"k1", KlEstimator::k1}, {"k2", KlEstimator::k2}, {"k3", KlEstimator::k3}}),
      choice<bool>(objective, "objective", {{"clip", false}, {"cispo", true}})};
  Tensor held_mean, held_var, held_denominator;
  const Tensor loss = at::empty({}, x.options()), metrics = at::empty({9}, x.options());
  const Tensor grad_logprobs = at::empty_like(x);
  const Tensor grad_values = v.defined() ? at::empty_like(v) : at::empty({0}, x.options());
  const Tensor grad_entropy = h.defined() ? at::empty_like(h) : at::empty({0}, x.options());
  task.tokens = tokens;
  task.logprobs = pointer<float>(x);
  task.old_logprobs = pointer<float>(old);
  task.advantages = pointer<float>(a);
  task.mask = bytes(m);
  task.values = pointer<float>(v);
  task.old_values = clips_values ? pointer<float>(v_old) : nullptr;
  task.returns = pointer<float>(r);
  task.entropy = pointer<float>(h);
  task.ref_logprobs = pointer<float>(ref);
  task.importance = pointer<float>(w);
  task.mean = number_on(mean, "mean", device, held_mean);
  task.var = number_on(var, "var", device, held_var);
  task.denominator = number_on(denominator, "denominator", device, held_denominator);
  task.shift_mean = shift_mean;
  task.options = options;
  task.loss = output(loss);
  task.metrics = output(metrics);
  task.grad_logprobs = output(grad_logprobs);
  task.grad_values = v.defined() ? output(grad_values) : nullptr;
  task.grad_entropy = h.defined() ? output(grad_entropy) : nullptr;
  start("policy_loss", &rlhf_policy_loss, rlhf_policy_loss_workspace(), task, device);
  return {loss, metrics, grad_logprobs, grad_values, grad_entropy};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CUDA, library) { library.impl("policy_loss", &policy_loss); }

}  // namespace rlhf
