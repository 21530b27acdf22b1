// rlhf::token_logprobs, its gradient, and the two halves of linear_policy_loss for CPU tensors: checks, rows
// that count, threads over tiles of rows and parts of the vocabulary.

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "head.h"
#include "parallel.h"
#include "pool.h"
#include "types.h"

namespace rlhf {
namespace {

using at::Tensor;
using cpu::Head;
using cpu::HeadKept;
using cpu::HeadSlopes;
using cpu::HeadSums;
using cpu::HeadTile;
using cpu::kPair;
using cpu::Unit;
using cpu::Wide;

constexpr int64_t kIgnored = -100;
constexpr int64_t kStep = 32;    // what products take of the hidden size
constexpr int64_t kRows = 1024;  // whose gradients are summed at once: bounds the memory of their parts

int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// Words of a part: of the vocabulary alone, never of rows or threads.
int64_t part_words(int64_t vocabulary) {
  return std::max<int64_t>(512, round_up((vocabulary + 15) / 16, cpu::kWords));
}

Tensor padded(const Tensor& x) {
  const int64_t missing = round_up(x.size(1), kStep) - x.size(1);
  return missing ? at::constant_pad_nd(x, {0, missing}) : dense_rows(x);
}

// The arguments of a linear head, checked and padded.
struct Call {
  Tensor hidden, weight, targets, bias;
  int64_t rows, size, vocabulary;
  double temperature;

  Call(const Tensor& hidden_, const Tensor& weight_, const Tensor& targets_, const MaybeTensor& bias_,
       double temperature_)
      : temperature(temperature_) {
    TORCH_CHECK_VALUE(hidden_.dim() == 2, "hidden: expected shape [N,H], got ", hidden_.sizes());
    rows = hidden_.size(0), size = hidden_.size(1), vocabulary = weight_.dim() == 2 ? weight_.size(0) : 0;
    TORCH_CHECK_VALUE(weight_.dim() == 2 && weight_.size(1) == size, "weight: expected shape [V,", size,
                      "], got ", weight_.sizes());
    TORCH_CHECK_VALUE(weight_.scalar_type() == hidden_.scalar_type(), "weight: expected ",
                      hidden_.scalar_type(), ", got ", weight_.scalar_type());
    check(targets_, "targets", rows, at::kLong, at::kCPU);
    TORCH_CHECK_VALUE(temperature > 0, "temperature: expected a number > 0, got ", temperature);
    targets = targets_.contiguous();
    const int64_t* labels = targets.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows; ++i)
      TORCH_CHECK_VALUE(labels[i] == kIgnored || (labels[i] >= 0 && labels[i] < vocabulary),
                        "targets: expected labels from 0 to ", vocabulary - 1, ", or ", kIgnored, ", got ",
                        labels[i]);
    hidden = padded(hidden_);
    weight = padded(weight_);
    if (bias_.has_value()) {
      TORCH_CHECK_VALUE(bias_->dim() == 1 && bias_->size(0) == vocabulary, "bias: expected shape [",
                        vocabulary, "], got ", bias_->sizes());
      bias = bias_->to(wide_options(weight_)).contiguous();
    }
  }

  template <typename E>
  Head<E> head() const {
    const int64_t width = hidden.size(1);
    return {const_data<E>(hidden),
            const_data<E>(weight),
            hidden.stride(0),
            weight.stride(0),
            const_data<Wide<E>>(bias),
            width,
            vocabulary,
            width <= 640 ? 128 : 64,
            static_cast<Wide<E>>(1 / temperature),
            cpu::product<E>()};
  }

  double flops(int64_t count, int products) const {
    return 2.0 * products * static_cast<double>(count) * static_cast<double>(size) *
           static_cast<double>(vocabulary);
  }
};

// Rows in tiles, with memory for what is packed of them.
template <typename E>
struct Tiles {
  std::vector<int64_t> rows, targets;
  std::vector<HeadTile<E>> tiles;
  Tensor memory;

  Tiles(const Head<E>& head, std::vector<int64_t> rows_, const int64_t* labels, bool paired,
        const at::TensorOptions& options)
      : rows(std::move(rows_)) {
    const int64_t total = static_cast<int64_t>(rows.size()), count = (total + head.lanes - 1) / head.lanes;
    const int64_t one = head.size * head.lanes;
    memory = pooled_empty({count * one * (paired ? 2 : 1)}, options);
    for (int64_t row : rows) targets.push_back(labels[row]);
    for (int64_t tile = 0; tile < count; ++tile) {
      const int64_t first = tile * head.lanes;
      E* place = data<E>(memory) + tile * one * (paired ? 2 : 1);
      tiles.push_back({rows.data() + first, targets.data() + first, std::min(head.lanes, total - first),
                       reinterpret_cast<Unit<E>*>(place),
                       paired ? reinterpret_cast<Unit<E>*>(place + one) : nullptr});
    }
  }
  Tiles(const Tiles&) = delete;  // tiles point into it

  int64_t count() const { return static_cast<int64_t>(tiles.size()); }

  void pack(const Head<E>& head, int64_t scratch) const {
    cpu::each_task(count(), static_cast<double>(rows.size() * head.size) * 4, scratch,
                   [&](int64_t tile, char* work) { RLHF_DISPATCH(pack_head_rows, head, tiles[tile], work); });
  }
};

// The parts of the vocabulary together: log Σ e^z and −Σ p·log p of one lane; `at` is the lane's place in
// each part's sums.
template <typename T>
std::pair<double, double> merged(const HeadSums<T>& sums, int64_t at, int64_t parts, int64_t apart) {
  const double nothing = -std::numeric_limits<double>::infinity();
  double most = nothing, sum = 0, moment = 0;
  for (int64_t part = 0; part < parts; ++part)
    most = std::max(most, static_cast<double>(sums.most[at + part * apart]));
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t place = at + part * apart;
    if (sums.most[place] == nothing) {
      sum += 0 * sums.sum[place];  // NaN stays NaN
      continue;
    }
    const double moved = sums.most[place] - most, weight = std::exp(moved);
    sum += weight * sums.sum[place];
    if (weight > 0) moment += weight * (sums.moment[place] + sums.sum[place] * moved);
  }
  const double lse = most == nothing ? std::nan("") : most + std::log(sum);
  return {lse, lse - lse + std::log(sum) - moment / sum};
}

struct Outputs {
  Tensor logprobs, entropies, lse, logits;
};

Outputs forward(const Call& call, bool entropy, bool keep) {
  Outputs out;
  const at::TensorOptions wide = wide_options(call.hidden);
  out.logprobs = at::zeros({call.rows}, wide);
  out.entropies = at::zeros({entropy ? call.rows : 0}, wide);
  out.lse = at::zeros({call.rows}, wide);
  const int64_t* labels = call.targets.const_data_ptr<int64_t>();
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < call.rows; ++i)
    if (labels[i] != kIgnored) rows.push_back(i);
  of_type(call.hidden, "hidden", [&]<typename E>(E) {
    using T = Wide<E>;
    const Head<E> head = call.head<E>();
    const int64_t scratch = RLHF_DISPATCH(head_scratch, head), words = part_words(call.vocabulary);
    const Tiles<E> tiles(head, std::move(rows), labels, false, call.hidden.options());
    tiles.pack(head, scratch);
    const int64_t parts = (call.vocabulary + words - 1) / words, columns = tiles.count() * head.lanes;
    out.logits = keep ? pooled_empty({round_up(call.vocabulary, cpu::kWords), columns}, wide) : Tensor();
    const Tensor memory = at::empty({4, parts, columns}, wide);
    T* const first = data<T>(memory);
    const auto sums_at = [&](int64_t part, int64_t column) {
      T* place = first + part * columns + column;
      return HeadSums<T>{place, place + parts * columns, place + 2 * parts * columns,
                         place + 3 * parts * columns};
    };
    const double flops = call.flops(static_cast<int64_t>(tiles.rows.size()), 1);
    cpu::each_task(parts * tiles.count(), flops, scratch, [&](int64_t task, char* work) {
      const int64_t part = task / tiles.count(), tile = task % tiles.count(), column = tile * head.lanes;
      RLHF_DISPATCH(head_sums, head, tiles.tiles[tile], part * words,
                    std::min((part + 1) * words, call.vocabulary), entropy,
                    keep ? data<T>(out.logits) + column : nullptr, columns, sums_at(part, column), work);
    });
    for (int64_t i = 0; i < static_cast<int64_t>(tiles.rows.size()); ++i) {
      const int64_t row = tiles.rows[i];
      const auto [lse, spread] = merged(sums_at(0, 0), i, parts, columns);
      data<T>(out.lse)[row] = static_cast<T>(lse);
      data<T>(out.logprobs)[row] = static_cast<T>(sums_at(tiles.targets[i] / words, i).target[0] - lse);
      if (entropy) data<T>(out.entropies)[row] = static_cast<T>(spread);
    }
  });
  return out;
}

Tensor packed_weight(const Call& call) {
  return of_type(call.weight, "weight", [&]<typename E>(E) {
    const Head<E> head = call.head<E>();
    const int64_t blocks = (call.vocabulary + cpu::kWords - 1) / cpu::kWords, one = head.size * cpu::kWords;
    const Tensor packed = pooled_empty({blocks, head.size, cpu::kWords}, call.weight.options());
    cpu::each_task(blocks, static_cast<double>(blocks * one), RLHF_DISPATCH(head_scratch, head),
                   [&](int64_t block, char* work) {
                     RLHF_DISPATCH(pack_head_weight, head, block * cpu::kWords, data<E>(packed) + block * one,
                                   work);
                   });
    return packed;
  });
}

struct Upstream {
  Tensor logprobs, entropies, lse,
      spread;  // gradients of the outputs, and the outputs they need; entropies may be undefined
};

// The gradient of hidden; adds to grad_weight [V rounded up, H padded] and grad_bias, both wide.
Tensor backward(const Call& call, const Upstream& given, const Tensor& logits, const Tensor& packed,
                const Tensor& grad_weight, const Tensor& grad_bias) {
  const Tensor grad_hidden = at::zeros({call.rows, call.hidden.size(1)}, call.hidden.options());
  const int64_t* labels = call.targets.const_data_ptr<int64_t>();
  of_type(call.hidden, "hidden", [&]<typename E>(E) {
    using T = Wide<E>;
    const Head<E> head = call.head<E>();
    const int64_t scratch = RLHF_DISPATCH(head_scratch, head), words = part_words(call.vocabulary);
    const T *by_logprob = const_data<T>(given.logprobs), *by_entropy = const_data<T>(given.entropies);
    std::vector<int64_t> all,
        columns;  // rows that have a gradient, and the column of the kept logits that each has
    for (int64_t i = 0, column = 0; i < call.rows; ++i) {
      if (labels[i] == kIgnored) continue;
      if (by_logprob[i] != 0 || (by_entropy && by_entropy[i] != 0)) {
        all.push_back(i);
        columns.push_back(column);
      }
      ++column;
    }
    const int64_t total = static_cast<int64_t>(all.size()), parts = (call.vocabulary + words - 1) / words;
    for (int64_t begin = 0; begin < total; begin += kRows) {
      const int64_t count = std::min(kRows, total - begin);
      const Tiles<E> tiles(head, {all.begin() + begin, all.begin() + begin + count}, labels, true,
                           call.hidden.options());
      tiles.pack(head, scratch);
      const int64_t one = head.size * head.lanes, apart = tiles.count() * one;
      const Tensor partial =
          pooled_empty({parts, tiles.count(), head.size, head.lanes}, wide_options(call.hidden));
      const auto gathered = [&](const Tensor& of) {
        std::vector<T> found(of.defined() ? count : 0);
        for (size_t i = 0; i < found.size(); ++i) found[i] = const_data<T>(of)[tiles.rows[i]];
        return found;
      };
      const std::vector<T> g = gathered(given.logprobs), h = gathered(given.entropies),
                           lse = gathered(given.lse);
      const std::vector<T> spread = gathered(by_entropy ? given.spread : Tensor());
      cpu::each_task(
          parts, call.flops(count, logits.defined() ? 2 : 3), scratch, [&](int64_t part, char* work) {
            for (int64_t tile = 0; tile < tiles.count(); ++tile) {
              const int64_t at = tile * head.lanes;
              const HeadSlopes<T> slopes{g.data() + at, by_entropy ? h.data() + at : nullptr, lse.data() + at,
                                         by_entropy ? spread.data() + at : nullptr};
              const HeadKept<T> kept{const_data<T>(logits), logits.defined() ? logits.size(1) : 0,
                                     columns.data() + begin + at};
              RLHF_DISPATCH(head_gradient, head, tiles.tiles[tile], part * words,
                            std::min((part + 1) * words, call.vocabulary),
                            const_data<E>(packed) + part * words * head.size, slopes, kept,
                            data<T>(partial) + part * apart + tile * one, data<T>(grad_weight),
                            data<T>(grad_bias), work);
            }
          });
      cpu::each_task(tiles.count(), static_cast<double>(parts * apart), scratch,
                     [&](int64_t tile, char* work) {
                       RLHF_DISPATCH(sum_head_parts, head, tiles.tiles[tile], data<T>(partial) + tile * one,
                                     parts, apart, data<E>(grad_hidden), work);
                     });
    }
  });
  return grad_hidden.narrow(1, 0, call.size).contiguous();
}

Upstream upstream(const Tensor& grad_logprobs, const MaybeTensor& grad_entropies, const Tensor& lse,
                  const Tensor& entropies, const Call& call) {
  const at::ScalarType wide = wide_options(call.hidden).dtype().toScalarType();
  const auto given = [&](const Tensor& x, const char* name) {
    return dense(x, name, call.rows, wide, at::kCPU);
  };
  Upstream found{given(grad_logprobs, "grad_logprobs"), {}, given(lse, "lse"), {}};
  if (grad_entropies.has_value()) {
    found.entropies = given(*grad_entropies, "grad_entropies");
    found.spread = given(entropies, "entropies");
  }
  return found;
}

std::tuple<Tensor, Tensor, Tensor> token_logprobs(const Tensor& hidden, const Tensor& weight,
                                                  const Tensor& targets, const MaybeTensor& bias,
                                                  double temperature, bool entropy) {
  const Outputs out = forward(Call(hidden, weight, targets, bias, temperature), entropy, false);
  return {out.logprobs, out.entropies, out.lse};
}

std::tuple<Tensor, Tensor, Tensor> token_logprobs_backward(const Tensor& grad_logprobs,
                                                           const MaybeTensor& grad_entropies,
                                                           const Tensor& hidden, const Tensor& weight,
                                                           const Tensor& targets, const MaybeTensor& bias,
                                                           const Tensor& lse, const Tensor& entropies,
                                                           double temperature) {
  const Call call(hidden, weight, targets, bias, temperature);
  const at::TensorOptions wide = wide_options(hidden);
  const Tensor grad_weight =
      pooled_empty({round_up(call.vocabulary, cpu::kWords), call.weight.size(1)}, wide).zero_();
  const Tensor grad_bias = bias.has_value() ? at::zeros({call.vocabulary}, wide) : Tensor();
  const Tensor grad_hidden = backward(call, upstream(grad_logprobs, grad_entropies, lse, entropies, call), {},
                                      packed_weight(call), grad_weight, grad_bias);
  return {
      grad_hidden,
      grad_weight.narrow(0, 0, call.vocabulary).narrow(1, 0, call.size).to(weight.scalar_type()).contiguous(),
      bias.has_value() ? grad_bias.to(bias->scalar_type()) : at::empty({0}, wide)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> head_rows(const Tensor& hidden, const Tensor& weight,
                                                     const Tensor& targets, const MaybeTensor& bias,
                                                     double temperature, bool entropy) {
  const Outputs out = forward(Call(hidden, weight, targets, bias, temperature), entropy, true);
  return {out.logprobs, out.entropies, out.lse, out.logits};
}

std::tuple<Tensor, Tensor> sample_rows(const Tensor& hidden, const Tensor& weight, const MaybeTensor& bias,
                                       double temperature, const Tensor& uniform) {
  const int64_t rows = hidden.size(0);
  const at::TensorOptions whole = hidden.options().dtype(at::kLong);
  const Tensor drawn = dense(uniform, "uniform", rows, at::kDouble, at::kCPU);
  const Outputs out = forward(Call(hidden, weight, at::zeros({rows}, whole), bias, temperature), false, true);
  const Tensor words = at::empty({rows}, whole), logprobs = at::empty({rows}, out.lse.options());
  const auto pick = [&]<typename T>(T) {
    const int64_t run = 16, stride = out.logits.size(1), vocabulary = weight.size(0);
    parallel_tasks((rows + run - 1) / run, 16.0 * static_cast<double>(rows * vocabulary),
                   [&](int64_t task) {
                     const int64_t first = task * run, count = std::min(run, rows - first);
                     RLHF_DISPATCH(pick_words, const_data<T>(out.logits) + first, stride, count, vocabulary,
                                   const_data<T>(out.lse) + first, const_data<double>(drawn) + first,
                                   data<int64_t>(words) + first);
                     for (int64_t i = first; i < first + count; ++i)
                       data<T>(logprobs)[i] =
                           const_data<T>(out.logits)[data<int64_t>(words)[i] * stride + i] -
                           const_data<T>(out.lse)[i];
                   },
                   [] {});
  };
  if (rows) out.lse.scalar_type() == at::kDouble ? pick(double{}) : pick(float{});
  return {words, logprobs};
}

Tensor pack_head(const Tensor& weight) {
  const Tensor no_rows = at::empty({0, weight.size(1)}, weight.options());
  return packed_weight(Call(no_rows, weight, at::empty({0}, weight.options().dtype(at::kLong)), {}, 1));
}

Tensor head_rows_backward(const Tensor& grad_logprobs, const MaybeTensor& grad_entropies,
                          const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                          const Tensor& lse, const Tensor& entropies, const Tensor& logits,
                          const Tensor& packed, double temperature, const Tensor& grad_weight,
                          const MaybeTensor& grad_bias) {
  const Call call(hidden, weight, targets, {}, temperature);
  TORCH_CHECK_VALUE(grad_weight.is_contiguous() &&
                        grad_weight.size(0) == round_up(call.vocabulary, cpu::kWords) &&
                        grad_weight.size(1) == call.weight.size(1),
                    "grad_weight: expected shape [V,H] rounded up to 64 and 32, got ", grad_weight.sizes());
  return backward(call, upstream(grad_logprobs, grad_entropies, lse, entropies, call), logits, packed,
                  grad_weight, grad_bias.value_or(Tensor()));
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) {
  library.impl("token_logprobs", &token_logprobs);
  library.impl("token_logprobs_backward", &token_logprobs_backward);
  library.impl("head_rows", &head_rows);
  library.impl("sample_rows", &sample_rows);
  library.impl("pack_head", &pack_head);
  library.impl("head_rows_backward", &head_rows_backward);
}

}  // namespace rlhf
