// rlhf::ranking_loss for CPU tensors: checks, outputs, the number of prompts that count, threads over prompts.

#include "ranking_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../checks.h"
#include "parallel.h"

namespace rlhf {
namespace {

using at::Tensor;

constexpr int64_t kResponsesAThread = 2048;  // one of nine takes about 20 ns

template <typename T>
cpu::RankingSums run(const cpu::RankingLoss<T>& task, int64_t prompts, const MaybeTensor& denominator) {
  std::vector<int64_t> pairs(prompts);
  std::vector<cpu::RankingSums> parts(prompts);
  parallel_sequences(
      task.cu_seqlens, prompts,
      [&](int64_t first, int64_t last) { RLHF_DISPATCH(ranking_order, task, first, last, pairs.data()); },
      kResponsesAThread);
  double there = 0;
  for (const int64_t count : pairs) there += count > 0;
  const double counted = number(denominator, "denominator", there > 0 ? there : 1);
  parallel_sequences(
      task.cu_seqlens, prompts,
      [&](int64_t first, int64_t last) {
        RLHF_DISPATCH(ranking_loss, task, first, last, pairs.data(), counted, parts.data());
      },
      kResponsesAThread);
  cpu::RankingSums all{0, 0};
  for (const cpu::RankingSums& part : parts) {
    all.loss += part.loss;
    all.accuracy += part.accuracy;
  }
  return {all.loss / counted, all.accuracy / counted};
}

std::tuple<Tensor, Tensor, Tensor> ranking_loss(const Tensor& scores, const Tensor& cu_seqlens, const Tensor& ranks,
                                                const MaybeTensor& rating, const MaybeTensor& denominator,
                                                double margin, double center_coef) {
  const at::ScalarType dtype = scores.scalar_type();
  const at::Device cpu = at::kCPU;
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "scores: expected float32 or float64, got ", dtype);
  const int64_t responses = scores.numel();
  const Tensor s = dense(scores, "scores", responses, dtype, cpu), offsets = dense_offsets(cu_seqlens, cpu);
  offsets_on_host(offsets, responses);
  const Tensor rank = dense(ranks, "ranks", responses, at::kDouble, cpu);
  const Tensor rated = dense(rating, "margin", responses, dtype, cpu);
  const Tensor order = at::empty_like(s), gradient = at::empty_like(s);
  const Tensor loss = at::empty({}, s.options()), accuracy = at::empty({}, s.options());
  const auto compute = [&]<typename T>(T) {
    const cpu::RankingSums sums = run(
        cpu::RankingLoss<T>{responses, pointer<T>(s), offsets.const_data_ptr<int32_t>(), pointer<double>(rank),
                            pointer<T>(rated), static_cast<T>(margin), static_cast<T>(center_coef),
                            order.mutable_data_ptr<T>(), gradient.mutable_data_ptr<T>()},
        offsets.size(0) - 1, denominator);
    *loss.mutable_data_ptr<T>() = static_cast<T>(sums.loss);
    *accuracy.mutable_data_ptr<T>() = static_cast<T>(sums.accuracy);
  };
  dtype == at::kFloat ? compute(float{}) : compute(double{});
  return {loss, accuracy, gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("ranking_loss", &ranking_loss); }

}  // namespace rlhf
