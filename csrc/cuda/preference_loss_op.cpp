// rlhf::preference_loss for CUDA tensors: checks, outputs, launch.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "binding.h"
#include "preference_loss.h"

namespace rlhf {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> preference_loss(
    const Tensor& chosen, const Tensor& rejected, const MaybeTensor& ref_chosen,
    const MaybeTensor& ref_rejected, const MaybeTensor& chosen_lengths, const MaybeTensor& rejected_lengths,
    const MaybeTensor& denominator, double beta, c10::string_view kind, double label_smoothing,
    double margin) {
  const at::Device device = device_of(chosen, "chosen");
  const int64_t pairs = chosen.numel();
  const auto given = [&](const MaybeTensor& tensor, const char* name) {
    return dense(tensor, name, pairs, at::kFloat, device);
  };
  const Tensor c = given(chosen, "chosen"), r = given(rejected, "rejected");
  const Tensor ref_c = given(ref_chosen, "ref_chosen"), ref_r = given(ref_rejected, "ref_rejected");
  const Tensor len_c = given(chosen_lengths, "chosen_lengths"),
               len_r = given(rejected_lengths, "rejected_lengths");
  const auto chose = choice<PreferenceKind>(kind, "kind",
                                            {{"dpo", PreferenceKind::dpo},
                                             {"hinge", PreferenceKind::hinge},
                                             {"ipo", PreferenceKind::ipo},
                                             {"kto", PreferenceKind::kto},
                                             {"orpo", PreferenceKind::orpo},
                                             {"simpo", PreferenceKind::simpo}});

  const c10::cuda::CUDAGuard guard(device);
  Tensor held;
  const Tensor loss = at::empty({}, c.options()), metrics = at::empty({4}, c.options());
  const Tensor grad_chosen = at::empty_like(c), grad_rejected = at::empty_like(r);
  cuda::PreferenceLoss task{};
  task.pairs = pairs;
  task.chosen = pointer<float>(c);
  task.rejected = pointer<float>(r);
  task.ref_chosen = pointer<float>(ref_c);
  task.ref_rejected = pointer<float>(ref_r);
  task.chosen_lengths = pointer<float>(len_c);
  task.rejected_lengths = pointer<float>(len_r);
  task.denominator = number_on(denominator, "denominator", device, held);
  task.options = {chose,
                  static_cast<float>(beta),
                  static_cast<float>(label_smoothing),
                  static_cast<float>(margin),
                  0,
                  0,
                  std::numeric_limits<float>::epsilon()};
  task.loss = output(loss);
  task.metrics = output(metrics);
  task.grad_chosen = output(grad_chosen);
  task.grad_rejected = output(grad_rejected);
  start("preference_loss", &rlhf_preference_loss, rlhf_preference_loss_workspace(), task, device);
  return {loss, metrics, grad_chosen, grad_rejected};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CUDA, library) { library.impl("preference_loss", &preference_loss); }

}  // namespace rlhf
