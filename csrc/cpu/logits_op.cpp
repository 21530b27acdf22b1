// rlhf::logprobs_from_logits and its gradient for CPU tensors: checks, and threads over runs of rows.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../checks.h"
#include "logits.h"
#include "parallel.h"
#include "pool.h"
#include "types.h"

namespace rlhf {
namespace {

using at::Tensor;
using cpu::Wide;

constexpr int64_t kIgnored = -100;

struct Call {
  Tensor logits, targets;
  int64_t rows, vocabulary;

  Call(const Tensor& logits_, const Tensor& targets_, double temperature) {
    TORCH_CHECK_VALUE(logits_.dim() == 2, "logits: expected shape [N,V], got ", logits_.sizes());
    TORCH_CHECK_VALUE(temperature > 0, "temperature: expected a number > 0, got ", temperature);
    logits = dense_rows(logits_);
    rows = logits.size(0), vocabulary = logits.size(1);
    check(targets_, "targets", rows, at::kLong, at::kCPU);
    targets = targets_.contiguous();
    for (int64_t i = 0; i < rows; ++i)
      TORCH_CHECK_VALUE(label(i) == kIgnored || (label(i) >= 0 && label(i) < vocabulary),
                        "targets: expected labels from 0 to ", vocabulary - 1, ", or ", kIgnored, ", got ",
                        label(i));
  }

  int64_t label(int64_t row) const { return targets.const_data_ptr<int64_t>()[row]; }

  // Calls body(row) on threads.
  template <typename F>
  void each_row(const F& body) const {
    const int64_t run = std::max<int64_t>(1, 65536 / std::max<int64_t>(vocabulary, 1));
    const double work = 16.0 * static_cast<double>(rows) * static_cast<double>(vocabulary);
    parallel_tasks((rows + run - 1) / run, work,
                   [&](int64_t task) {
                     for (int64_t row = task * run; row < std::min((task + 1) * run, rows); ++row) body(row);
                   },
                   [] {});
  }
};

std::tuple<Tensor, Tensor, Tensor> logprobs_from_logits(const Tensor& logits, const Tensor& targets,
                                                        double temperature, bool entropy) {
  const Call call(logits, targets, temperature);
  const at::TensorOptions wide = wide_options(logits);
  const Tensor logprobs = at::zeros({call.rows}, wide), lse = at::zeros({call.rows}, wide.dtype(at::kDouble));
  const Tensor entropies = at::zeros({entropy ? call.rows : 0}, wide);
  of_type(call.logits, "logits", [&]<typename E>(E) {
    using T = Wide<E>;
    const T inverse = static_cast<T>(1 / temperature);
    call.each_row([&](int64_t i) {
      if (call.label(i) == kIgnored) return;
      const E* row = const_data<E>(call.logits) + i * call.logits.stride(0);
      const cpu::LogitSums<T> sums = RLHF_DISPATCH(logit_sums, row, call.vocabulary, inverse, entropy);
      const bool nothing = sums.most == -std::numeric_limits<T>::infinity();
      const double norm = nothing ? std::nan("") : std::log(sums.sum);
      const auto widened = [](E x) {
        if constexpr (sizeof(E) == 2)
          return static_cast<float>(at::BFloat16(x.bits, at::BFloat16::from_bits()));
        else
          return x;
      };
      data<double>(lse)[i] = sums.most + norm;
      data<T>(logprobs)[i] = static_cast<T>(widened(row[call.label(i)]) * inverse - sums.most - norm);
      if (entropy) data<T>(entropies)[i] = static_cast<T>(norm - sums.moment / sums.sum);
    });
  });
  return {logprobs, entropies, lse};
}

Tensor logprobs_from_logits_backward(const Tensor& grad_logprobs, const MaybeTensor& grad_entropies,
                                     const Tensor& logits, const Tensor& targets, const Tensor& lse,
                                     const Tensor& entropies, double temperature) {
  const Call call(logits, targets, temperature);
  const at::ScalarType wide = wide_options(logits).dtype().toScalarType();
  const auto given = [&](const MaybeTensor& x, const char* name) {
    return dense(x, name, call.rows, wide, at::kCPU);
  };
  const Tensor by_logprob = given(grad_logprobs, "grad_logprobs"),
               by_entropy = given(grad_entropies, "grad_entropies");
  const Tensor norms = dense(lse, "lse", call.rows, at::kDouble, at::kCPU),
               spread = by_entropy.defined() ? given(entropies, "entropies") : Tensor();
  const Tensor out = pooled_empty(call.logits.sizes(), call.logits.options());
  of_type(call.logits, "logits", [&]<typename E>(E) {
    using T = Wide<E>;
    call.each_row([&](int64_t i) {
      E* to = data<E>(out) + i * call.vocabulary;
      const T g = const_data<T>(by_logprob)[i], h = by_entropy.defined() ? const_data<T>(by_entropy)[i] : 0;
      if (call.label(i) == kIgnored || (g == 0 && h == 0)) {
        std::fill_n(reinterpret_cast<char*>(to), call.vocabulary * sizeof(E), 0);
        return;
      }
      const E* row = const_data<E>(call.logits) + i * call.logits.stride(0);
      const double norm = const_data<double>(norms)[i];
      const T near = static_cast<T>(norm);
      const cpu::LogitSlopes<T> slopes{g,
                                       h,
                                       by_entropy.defined() ? const_data<T>(spread)[i] : 0,
                                       near,
                                       static_cast<T>(norm - near),
                                       call.label(i)};
      RLHF_DISPATCH(logit_gradient, row, call.vocabulary, static_cast<T>(1 / temperature), slopes,
                    by_entropy.defined(), to);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) {
  library.impl("logprobs_from_logits", &logprobs_from_logits);
  library.impl("logprobs_from_logits_backward", &logprobs_from_logits_backward);
}

}  // namespace rlhf
