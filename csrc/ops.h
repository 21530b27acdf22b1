// The ops of this library, an entry a device. Their schemas are in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace rlhf {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> shaped_gae_cpu(
    const at::Tensor& scores, const at::Tensor& values, const at::Tensor& cu_seqlens,
    const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& rewards,
    const std::optional<at::Tensor>& logprobs, const std::optional<at::Tensor>& ref_logprobs,
    const std::optional<at::Tensor>& bootstrap, double gamma, double lam, double kl_coef,
    c10::string_view kl_estimator, std::optional<double> score_clip);

}  // namespace rlhf
