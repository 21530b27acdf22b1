// Autograd of rlhf::token_logprobs and rlhf::logprobs_from_logits: log-probs and entropies are
// differentiable, the log-sum-exp beside them is what the backward pass starts from.

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
using Three = std::tuple<Tensor, Tensor, Tensor>;

template <typename Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

MaybeTensor maybe(const Tensor& x) { return x.defined() ? MaybeTensor(x) : std::nullopt; }

// What comes from above: of log-probs always a tensor, of entropies one or none; false where nothing comes at
// all.
bool upstream(const variable_list& given, Tensor& logprobs, MaybeTensor& entropies) {
  if (!given[0].defined() && !given[1].defined()) return false;
  logprobs = given[0].defined() ? given[0] : at::zeros_like(given[1]);
  entropies = maybe(given[1]);
  return true;
}

struct TokenLogprobs : torch::autograd::Function<TokenLogprobs> {
  static variable_list forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight,
                               const Tensor& targets, const MaybeTensor& bias, double temperature,
                               bool entropy) {
    static const auto op =
        find<Three(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&, double, bool)>(
            "rlhf::token_logprobs");
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [logprobs, entropies, lse] = op.call(hidden, weight, targets, bias, temperature, entropy);
    context->save_for_backward({hidden, weight, targets, bias.value_or(Tensor()), lse, entropies});
    context->saved_data["temperature"] = temperature;
    context->mark_non_differentiable(entropy ? variable_list{lse} : variable_list{lse, entropies});
    context->set_materialize_grads(false);
    return {logprobs, entropies, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& given) {
    static const auto op =
        find<Three(const Tensor&, const MaybeTensor&, const Tensor&, const Tensor&, const Tensor&,
                   const MaybeTensor&, const Tensor&, const Tensor&, double)>(
            "rlhf::token_logprobs_backward");
    const variable_list saved = context->get_saved_variables();
    variable_list found(6);
    Tensor logprobs;
    MaybeTensor entropies;
    if (!upstream(given, logprobs, entropies)) return found;
    Tensor grad_bias;
    std::tie(found[0], found[1], grad_bias) =
        op.call(logprobs, entropies, saved[0], saved[1], saved[2], maybe(saved[3]), saved[4], saved[5],
                context->saved_data["temperature"].toDouble());
    if (saved[3].defined()) found[3] = grad_bias;
    return found;
  }
};

struct FromLogits : torch::autograd::Function<FromLogits> {
  static variable_list forward(AutogradContext* context, const Tensor& logits, const Tensor& targets,
                               double temperature, bool entropy) {
    static const auto op =
        find<Three(const Tensor&, const Tensor&, double, bool)>("rlhf::logprobs_from_logits");
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [logprobs, entropies, lse] = op.call(logits, targets, temperature, entropy);
    context->save_for_backward({logits, targets, lse, entropies});
    context->saved_data["temperature"] = temperature;
    context->mark_non_differentiable(entropy ? variable_list{lse} : variable_list{lse, entropies});
    context->set_materialize_grads(false);
    return {logprobs, entropies, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& given) {
    static const auto op =
        find<Tensor(const Tensor&, const MaybeTensor&, const Tensor&, const Tensor&, const Tensor&,
                    const Tensor&, double)>("rlhf::logprobs_from_logits_backward");
    const variable_list saved = context->get_saved_variables();
    variable_list found(4);
    Tensor logprobs;
    MaybeTensor entropies;
    if (upstream(given, logprobs, entropies))
      found[0] = op.call(logprobs, entropies, saved[0], saved[1], saved[2], saved[3],
                         context->saved_data["temperature"].toDouble());
    return found;
  }
};

Three token_logprobs(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                     const MaybeTensor& bias, double temperature, bool entropy) {
  const variable_list out = TokenLogprobs::apply(hidden, weight, targets, bias, temperature, entropy);
  return {out[0], out[1], out[2]};
}

Three logprobs_from_logits(const Tensor& logits, const Tensor& targets, double temperature, bool entropy) {
  const variable_list out = FromLogits::apply(logits, targets, temperature, entropy);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, Autograd, library) {
  library.impl("token_logprobs", &token_logprobs);
  library.impl("logprobs_from_logits", &logprobs_from_logits);
}

}  // namespace rlhf
