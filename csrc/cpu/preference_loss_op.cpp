// rlhf::preference_loss for CPU tensors: checks, outputs, and one thread: a batch has hundreds of pairs, not millions.

#include "preference_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../checks.h"

namespace rlhf {
namespace {

using at::Tensor;

template <typename T>
cpu::PreferenceSums run(cpu::PreferenceLoss<T> task, int64_t pairs) {
  if (task.options.kind == PreferenceKind::kto && pairs > 0) {
    const cpu::PreferenceSums ratios = RLHF_DISPATCH(preference_ratios, task, 0, pairs);
    const double count = static_cast<double>(pairs);
    task.options.z_chosen = static_cast<T>(std::max(ratios.chosen / count, 0.0));
    task.options.z_rejected = static_cast<T>(std::max(ratios.rejected / count, 0.0));
  }
  return RLHF_DISPATCH(preference_loss, task, 0, pairs);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> preference_loss(
    const Tensor& chosen, const Tensor& rejected, const MaybeTensor& ref_chosen, const MaybeTensor& ref_rejected,
    const MaybeTensor& chosen_lengths, const MaybeTensor& rejected_lengths, const MaybeTensor& denominator,
    double beta, c10::string_view kind, double label_smoothing, double margin) {
  const at::ScalarType dtype = chosen.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "chosen: expected float32 or float64, got ", dtype);
  const int64_t pairs = chosen.numel();
  const auto given = [&](const MaybeTensor& tensor, const char* name) {
    return dense(tensor, name, pairs, dtype, at::kCPU);
  };
  const Tensor c = given(chosen, "chosen"), r = given(rejected, "rejected");
  const Tensor ref_c = given(ref_chosen, "ref_chosen"), ref_r = given(ref_rejected, "ref_rejected");
  const Tensor len_c = given(chosen_lengths, "chosen_lengths"), len_r = given(rejected_lengths, "rejected_lengths");
  const auto chose = choice<PreferenceKind>(kind, "kind", {{"dpo", PreferenceKind::dpo},
                                                           {"hinge", PreferenceKind::hinge},
                                                           {"ipo", PreferenceKind::ipo},
                                                           {"kto", PreferenceKind::kto},
                                                           {"orpo", PreferenceKind::orpo},
                                                           {"simpo", PreferenceKind::simpo}});
  const double count = number(denominator, "denominator", static_cast<double>(std::max<int64_t>(pairs, 1)));
  const Tensor grad_chosen = at::empty_like(c), grad_rejected = at::empty_like(r);
  const Tensor loss = at::empty({}, c.options()), metrics = at::empty({4}, c.options());
  const auto compute = [&]<typename T>(T) {
    const PreferenceOptions<T> options{chose,
                                       static_cast<T>(beta),
                                       static_cast<T>(label_smoothing),
                                       static_cast<T>(margin),
                                       0,
                                       0,
                                       std::numeric_limits<T>::epsilon()};
    const cpu::PreferenceSums sums =
        run(cpu::PreferenceLoss<T>{pointer<T>(c), pointer<T>(r), pointer<T>(ref_c), pointer<T>(ref_r),
                                   pointer<T>(len_c), pointer<T>(len_r), options, 1 / count,
                                   grad_chosen.mutable_data_ptr<T>(), grad_rejected.mutable_data_ptr<T>()},
            pairs);
    const double found[] = {beta * sums.chosen, beta * sums.rejected, beta * (sums.chosen - sums.rejected), sums.right};
    for (int i = 0; i < 4; ++i) metrics.mutable_data_ptr<T>()[i] = static_cast<T>(found[i] / count);
    *loss.mutable_data_ptr<T>() = static_cast<T>(sums.loss / count);
  };
  dtype == at::kFloat ? compute(float{}) : compute(double{});
  return {loss, metrics, grad_chosen, grad_rejected};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("preference_loss", &preference_loss); }

}  // namespace rlhf
