// Autograd of the ops that give a scalar loss and, from the same pass, its gradients for an upstream gradient of 1: what
// comes from above is multiplied in. In C++ because torch.library.register_autograd parses the schema on every call
// (200 µs for policy_loss, measured).

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

namespace rlhf {
namespace {

using at::Tensor;
using MaybeTensor = const std::optional<Tensor>&;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Result {
  Tensor loss;
  variable_list gradients;
};

// Spares a pass where nothing comes from above but 1, if looking costs nothing.
Tensor scaled(const Tensor& gradient, const Tensor& upstream) {
  const bool plain = upstream.device().is_cpu() && !at::isTensorSubclassLike(upstream);
  return plain && upstream.item().toDouble() == 1 ? gradient : at::mul(gradient, upstream);
}

struct ScalarLoss : torch::autograd::Function<ScalarLoss> {
  static Tensor forward(AutogradContext* context, const Result& result, MaybeTensor, MaybeTensor, MaybeTensor) {
    context->save_for_backward(result.gradients);
    return result.loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    const variable_list gradients = context->get_saved_variables();
    variable_list found(4);  // the result, which has none, and three inputs
    size_t edge = 0;  // only inputs that were given have one
    for (size_t i = 0; i < gradients.size(); ++i)
      if (gradients[i].defined() && context->needs_input_grad(edge++)) found[i + 1] = scaled(gradients[i], upstream[0]);
    return found;
  }
};

// The op `name`, whose inputs at the positions `learnt` have the gradients that are its last outputs.
template <const char* name, typename Signature, size_t... learnt>
struct Differentiable;

template <const char* name, typename Outputs, typename... Inputs, size_t... learnt>
struct Differentiable<name, Outputs(Inputs...), learnt...> {
  static Outputs call(Inputs... inputs) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Outputs(Inputs...)>();
    Outputs outputs = [&] {
      const at::AutoDispatchBelowADInplaceOrView below;
      return op.call(inputs...);
    }();
    const auto all = std::forward_as_tuple(inputs...);
    const std::optional<Tensor> given[3] = {std::optional<Tensor>(std::get<learnt>(all))...};
    Result result{std::get<0>(outputs), gradients(outputs, std::make_index_sequence<sizeof...(learnt)>{})};
    for (size_t i = 0; i < result.gradients.size(); ++i)
      if (!given[i].has_value()) result.gradients[i] = Tensor();
    std::get<0>(outputs) = ScalarLoss::apply(result, given[0], given[1], given[2]);
    return outputs;
  }

  template <size_t... i>
  static variable_list gradients(const Outputs& outputs, std::index_sequence<i...>) {
    constexpr size_t first = std::tuple_size_v<Outputs> - sizeof...(i);
    return {std::get<first + i>(outputs)...};
  }
};

using Text = c10::string_view;
using MaybeNumber = std::optional<double>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr char policy_loss[] = "rlhf::policy_loss";
using PolicyLoss = Differentiable<
    policy_loss,
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
        const Tensor&, const Tensor&, const Tensor&, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor,
        MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, Text, Text, Text, Text, double,
        double, MaybeNumber, MaybeNumber, double, double, double, bool),
    0, 4, 7>;  // logprobs, values, entropy

constexpr char ranking_loss[] = "rlhf::ranking_loss";
using RankingLoss =
    Differentiable<ranking_loss,
                   std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, MaybeTensor,
                                                      MaybeTensor, double, double),
                   0>;  // scores

constexpr char preference_loss[] = "rlhf::preference_loss";
using PreferenceLoss =
    Differentiable<preference_loss,
                   Four(const Tensor&, const Tensor&, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor,
                        double, Text, double, double),
                   0, 1>;  // chosen, rejected

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, Autograd, library) {
  library.impl("policy_loss", &PolicyLoss::call);
  library.impl("ranking_loss", &RankingLoss::call);
  library.impl("preference_loss", &PreferenceLoss::call);
}

}  // namespace rlhf
