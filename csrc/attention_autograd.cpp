// Autograd of rlhf::attention, of every device that has it: out and lse are both differentiable.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace rlhf {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Window = std::optional<int64_t>;

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                           const MaybeTensor&, double, bool, Window);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const MaybeTensor&, const Tensor&,
                                                    const Tensor&, const Tensor&, const Tensor&,
                                                    const Tensor&, const Tensor&, const MaybeTensor&, double,
                                                    bool, Window);

struct Attention : torch::autograd::Function<Attention> {
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& cu_seqlens, const MaybeTensor& responses_per_prompt,
                               double scale, bool causal, Window window) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rlhf::attention", "").typed<Forward>();
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = op.call(q, k, v, cu_seqlens, responses_per_prompt, scale, causal, window);
    context->save_for_backward({q, k, v, out, lse, cu_seqlens, responses_per_prompt.value_or(Tensor())});
    context->saved_data["scale"] = scale;
    context->saved_data["causal"] = causal;
    context->saved_data["window"] = window;
    context->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rlhf::attention_backward", "").typed<Backward>();
    const variable_list saved = context->get_saved_variables();
    variable_list found(8);
    if (!upstream[0].defined() && !upstream[1].defined()) return found;
    const Tensor grad_out = upstream[0].defined() ? upstream[0] : at::zeros_like(saved[3]);
    const MaybeTensor grad_lse = upstream[1].defined() ? MaybeTensor(upstream[1]) : std::nullopt;
    const MaybeTensor responses = saved[6].defined() ? MaybeTensor(saved[6]) : std::nullopt;
    std::tie(found[0], found[1], found[2]) =
        op.call(grad_out, grad_lse, saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], responses,
                context->saved_data["scale"].toDouble(), context->saved_data["causal"].toBool(),
                context->saved_data["window"].toOptional<int64_t>());
    return found;
  }
};

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& cu_seqlens, const MaybeTensor& responses_per_prompt,
                                     double scale, bool causal, Window window) {
  const variable_list found =
      Attention::apply(q, k, v, cu_seqlens, responses_per_prompt, scale, causal, window);
  return {found[0], found[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, Autograd, library) { library.impl("attention", &attention); }

}  // namespace rlhf
