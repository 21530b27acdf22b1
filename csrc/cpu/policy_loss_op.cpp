// rlhf::policy_loss for CPU tensors: checks, outputs, weights, threads over spans of tokens, and the merged sums.

#include "policy_loss.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "count_true.h"
#include "parallel.h"
#include "pool.h"

namespace rlhf {
namespace {

using at::Tensor;

constexpr int64_t kPolicyTokensAThread = 16384;  // a token takes 2 ns here
constexpr int64_t kChunk = 4096;  // tokens of a span where all have one weight: a thread's unit of work

int64_t count_valid(const bool* mask, int64_t begin, int64_t end) {
  return mask ? count_true(mask + begin, end - begin) : end - begin;
}

double inverse(double count) { return count == 0 ? 0 : 1 / count; }

// Chunks of the whole batch; a fixed size, so that sums do not depend on the number of threads.
std::vector<cpu::PolicySpan> chunks(int64_t tokens, double weight) {
  std::vector<cpu::PolicySpan> spans;
  for (int64_t begin = 0; begin < tokens; begin += kChunk)
    spans.push_back({begin, std::min(begin + kChunk, tokens), 0, weight, false});
  return spans;
}

std::vector<cpu::PolicySpan> sequences(const Tensor& offsets, const bool* mask) {
  const int32_t* bounds = offsets.const_data_ptr<int32_t>();
  std::vector<cpu::PolicySpan> spans;
  for (int64_t row = 0; row + 1 < offsets.size(0); ++row)
    spans.push_back({bounds[row], bounds[row + 1], count_valid(mask, bounds[row], bounds[row + 1]), 0, false});
  return spans;
}

struct Weighing {
  bool by_sequence;  // weights 1/(S·n_b), else all tokens' weights are equal
  bool one_ratio;
  std::optional<double> denominator;
};

std::vector<cpu::PolicySpan> spans_of(const Weighing& how, const Tensor& offsets, const bool* mask, int64_t tokens,
                                      int64_t valid) {
  const double weight = how.denominator ? inverse(*how.denominator) : inverse(static_cast<double>(valid));
  if (!how.by_sequence && !how.one_ratio) return chunks(tokens, weight);
  std::vector<cpu::PolicySpan> spans = sequences(offsets, mask);
  double there = 0;
  for (const cpu::PolicySpan& span : spans) there += span.valid > 0;
  const double count = how.denominator.value_or(there);
  for (cpu::PolicySpan& span : spans) {
    span.weight = how.by_sequence ? inverse(count * static_cast<double>(span.valid)) : weight;
    span.one_ratio = how.one_ratio;
  }
  return spans;
}

// Threads take spans with about as many tokens; sums are merged in order.
template <typename T>
cpu::PolicySums run(const cpu::PolicyLoss<T>& task, const std::vector<cpu::PolicySpan>& spans) {
  std::vector<cpu::PolicySums> parts(spans.size());
  std::vector<int64_t> bounds{0};
  for (const cpu::PolicySpan& span : spans) bounds.push_back(span.end);
  parallel_sequences(bounds.data(), static_cast<int64_t>(spans.size()), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) parts[i] = RLHF_DISPATCH(policy_loss, task, spans[i]);
  }, kPolicyTokensAThread);
  cpu::PolicySums all{};
  for (const cpu::PolicySums& part : parts) {
    all.policy += part.policy;
    all.value += part.value;
    all.entropy += part.entropy;
    all.kl += part.kl;
    all.approx_kl += part.approx_kl;
    all.clipped += part.clipped;
    all.ratio += part.ratio;
    all.value_clipped += part.value_clipped;
    all.largest_ratio = std::max(all.largest_ratio, part.largest_ratio);
  }
  return all;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> policy_loss(
    const Tensor& logprobs, const Tensor& old_logprobs, const Tensor& advantages, const MaybeTensor& mask,
    const MaybeTensor& values, const MaybeTensor& old_values, const MaybeTensor& returns, const MaybeTensor& entropy,
    const MaybeTensor& ref_logprobs, const MaybeTensor& importance, const MaybeTensor& cu_seqlens,
    const MaybeTensor& mean, const MaybeTensor& var, const MaybeTensor& denominator, c10::string_view objective,
    c10::string_view level, c10::string_view aggregate, c10::string_view kl_estimator, double clip_low,
    double clip_high, std::optional<double> dual_clip, std::optional<double> value_clip, double value_coef,
    double entropy_coef, double kl_coef, bool shift_mean) {
  const at::ScalarType dtype = logprobs.scalar_type();
  const at::Device cpu = at::kCPU;
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "logprobs: expected float32 or float64, got ", dtype);
  const int64_t tokens = logprobs.numel();
  const auto per_token = [&](const MaybeTensor& tensor, const char* name) {
    return dense(tensor, name, tokens, dtype, cpu);
  };
  const Tensor x = per_token(logprobs, "logprobs"), old = per_token(old_logprobs, "old_logprobs");
  const Tensor a = per_token(advantages, "advantages"), m = dense(mask, "mask", tokens, at::kBool, cpu);
  const Tensor v = per_token(values, "values"), v_old = per_token(old_values, "old_values");
  const Tensor r = per_token(returns, "returns"), h = per_token(entropy, "entropy");
  const Tensor ref = per_token(ref_logprobs, "ref_logprobs"), w = per_token(importance, "importance");
  TORCH_CHECK_VALUE(!v.defined() || r.defined(), "returns: expected along with values");
  const bool clips_values = value_clip.has_value() && v_old.defined();
  const bool cispo = choice<bool>(objective, "objective", {{"clip", false}, {"cispo", true}});
  Weighing how{};
  how.one_ratio = choice<bool>(level, "level", {{"token", false}, {"sequence", true}});
  how.by_sequence = choice<bool>(aggregate, "aggregate", {{"token", false}, {"constant", false}, {"sequence", true}});
  if (denominator) how.denominator = number(denominator, "denominator", 0);
  TORCH_CHECK_VALUE(aggregate != "constant" || how.denominator, "denominator: expected with aggregate=constant");
  Tensor offsets;
  if (how.by_sequence || how.one_ratio) {
    TORCH_CHECK_VALUE(cu_seqlens.has_value(), "cu_seqlens: expected offsets of the sequences");
    offsets = dense_offsets(*cu_seqlens, cpu);
    offsets_on_host(offsets, tokens);
  }
  const double centre = number(mean, "mean", 0), variance = number(var, "var", 0);
  const double none = std::numeric_limits<double>::infinity();
  const Tensor grad_logprobs = pooled_like(x);
  const Tensor grad_values = v.defined() ? pooled_like(v) : at::empty({0}, x.options());
  const Tensor grad_entropy = h.defined() ? pooled_like(h) : at::empty({0}, x.options());
  const Tensor loss = at::empty({}, x.options()), metrics = at::empty({9}, x.options());
  const int64_t valid = count_valid(pointer<bool>(m), 0, tokens);
  const auto spans = spans_of(how, offsets, pointer<bool>(m), tokens, valid);
  const auto compute = [&]<typename T>(T) {
    const bool whiten = mean.has_value();
    const PolicyOptions<T> options{static_cast<T>(1 - clip_low),
                                   static_cast<T>(1 + clip_high),
                                   static_cast<T>(dual_clip.value_or(none)),
                                   static_cast<T>(clips_values ? *value_clip : none),
                                   static_cast<T>(centre),
                                   static_cast<T>(1 / std::sqrt(variance + 1e-8)),
                                   static_cast<T>(shift_mean ? 0 : centre),
                                   static_cast<T>(value_coef),
                                   static_cast<T>(entropy_coef),
                                   static_cast<T>(kl_coef),
                                   choice<KlEstimator>(kl_estimator, "kl_estimator", {{"k1", KlEstimator::k1},
                                                                                      {"k2", KlEstimator::k2},
                                                                                      {"k3", KlEstimator::k3}}),
                                   cispo};
    const cpu::PolicySums sums = run(
        cpu::PolicyLoss<T>{pointer<T>(x), pointer<T>(old), pointer<T>(a), pointer<bool>(m), pointer<T>(v),
                           clips_values ? pointer<T>(v_old) : nullptr, pointer<T>(r), pointer<T>(h), pointer<T>(ref),
                           pointer<T>(w), options, whiten, grad_logprobs.mutable_data_ptr<T>(),
                           grad_values.mutable_data_ptr<T>(), grad_entropy.mutable_data_ptr<T>()},
        spans);
    const double each = inverse(static_cast<double>(valid));
    const double found[] = {-sums.policy,          sums.value,          sums.entropy,       sums.kl,
                            sums.approx_kl * each, sums.clipped * each, sums.ratio * each, sums.largest_ratio,
                            sums.value_clipped * each};
    for (int i = 0; i < 9; ++i) metrics.mutable_data_ptr<T>()[i] = static_cast<T>(found[i]);
    *loss.mutable_data_ptr<T>() = static_cast<T>(-sums.policy + value_coef * sums.value -
                                                 entropy_coef * sums.entropy + kl_coef * sums.kl);
  };
  dtype == at::kFloat ? compute(float{}) : compute(double{});
  return {loss, metrics, grad_logprobs, grad_values, grad_entropy};
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("policy_loss", &policy_loss); }

}  // namespace rlhf
