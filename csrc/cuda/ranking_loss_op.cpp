// rlhf::ranking_loss for CUDA tensors: checks, outputs, launch.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "binding.h"
#include "ranking_loss.h"

namespace rlhf {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor> ranking_loss(const Tensor& scores, const Tensor& cu_seqlens,
                                                const Tensor& ranks, const MaybeTensor& rating,
                                                const MaybeTensor& denominator, double margin,
                                                double center_coef) {
  const at::Device device = device_of(scores, "scores");
  const int64_t responses = scores.numel();
  const Tensor s = dense(scores, "scores", responses, at::kFloat, device);
  const Tensor offsets = dense_offsets(cu_seqlens, device);
  const Tensor rank = dense(ranks, "ranks", responses, at::kDouble, device);
  const Tensor rated = dense(rating, "margin", responses, at::kFloat, device);

  const c10::cuda::CUDAGuard guard(device);
  Tensor held;
  const Tensor loss = at::empty({}, s.options()), accuracy = at::empty({}, s.options());
  const Tensor gradient = at::empty_like(s);
  cuda::RankingLoss task{};
  task.responses = responses;
  task.prompts = offsets.size(0) - 1;
  task.scores = pointer<float>(s);
  task.cu_seqlens = offsets.const_data_ptr<int32_t>();
  task.ranks = pointer<double>(rank);
  task.rating = pointer<float>(rated);
  task.denominator = number_on(denominator, "denominator", device, held);
  task.margin = static_cast<float>(margin);
  task.center_coef = static_cast<float>(center_coef);
  task.loss = output(loss);
  task.accuracy = output(accuracy);
  task.grad_scores = output(gradient);
  start("ranking_loss", &rlhf_ranking_loss, rlhf_ranking_loss_workspace(), task, device);
  return {loss, accuracy, gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CUDA, library) { library.impl("ranking_loss", &ranking_loss); }

}  // namespace rlhf
