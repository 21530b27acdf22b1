// rlhf::attention and its gradient for CPU tensors: checks, outputs, and threads over tiles (forward) and
// chunks (backward).

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "attention.h"
#include "attention_plan.h"
#include "parallel.h"
#include "pool.h"
#include "types.h"

namespace rlhf {
namespace {

using at::Tensor;
using cpu::Attention;
using cpu::AttentionGradient;
using cpu::Rows;
using cpu::Wide;

template <typename E>
Rows<E> rows(const Tensor& x) {
  return {const_data<E>(x), x.stride(0), x.stride(1)};
}

// The arguments, checked.
struct Call {
  Tensor q, k, v, cu_seqlens;
  int64_t tokens, heads, key_heads, size;
  double scale;
  bool causal;
  int64_t window;

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& offsets, double scale_,
       bool causal_, std::optional<int64_t> window_)
      : q(dense_rows(q_)),
        k(dense_rows(k_)),
        v(dense_rows(v_)),
        scale(scale_),
        causal(causal_),
        window(window_.value_or(0)) {
    TORCH_CHECK_VALUE(q.dim() == 3, "q: expected shape [N,Hq,D], got ", q.sizes());
    tokens = q.size(0), heads = q.size(1), size = q.size(2);
    TORCH_CHECK_VALUE(k.dim() == 3 && k.size(0) == tokens && k.size(2) == size, "k: expected shape [", tokens,
                      ",Hk,", size, "], got ", k.sizes());
    key_heads = k.size(1);
    TORCH_CHECK_VALUE(v.sizes() == k.sizes(), "v: expected shape ", k.sizes(), ", got ", v.sizes());
    TORCH_CHECK_VALUE(key_heads > 0 && heads % key_heads == 0,
                      "k: expected a number of heads that divides q's ", heads, ", got ", key_heads);
    TORCH_CHECK_VALUE(size % 32 == 0 && size > 0, "q: expected a head size that is a multiple of 32, got ",
                      size);
    for (const auto& [name, x] : {std::pair{"k", k}, std::pair{"v", v}})
      TORCH_CHECK_VALUE(x.scalar_type() == q.scalar_type(), name, ": expected ", q.scalar_type(), ", got ",
                        x.scalar_type());
    TORCH_CHECK_VALUE(!window_ || *window_ > 0, "window: expected a number > 0, got ", window);
    cu_seqlens = dense_offsets(offsets, at::kCPU);
  }

  template <typename E>
  Attention<E> task() const {
    return {rows<E>(q), rows<E>(k), rows<E>(v),        tokens, heads, key_heads, size, 0, scale,
            causal,     window,     cpu::product<E>(), nullptr};
  }

  double flops(const AttentionPlan& plan) const {
    return 4.0 * plan.pairs * static_cast<double>(heads * size);
  }
};

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& cu_seqlens, const MaybeTensor& responses_per_prompt,
                                     double scale, bool causal, std::optional<int64_t> window) {
  const Call call(q, k, v, cu_seqlens, scale, causal, window);
  if (call.heads == 0) return {at::empty_like(call.q), at::empty({call.tokens, 0}, wide_options(q))};
  return of_type(q, "q", [&]<typename E>(E) -> std::tuple<Tensor, Tensor> {
    Attention<E> task = call.task<E>();
    const AttentionPlan plan(call.cu_seqlens, responses_per_prompt, call.tokens, causal, call.window,
                             task.tile_tokens());
    const Tensor out = pooled_empty({call.tokens, call.heads, call.size}, q.options());
    const Tensor lse = pooled_empty({call.tokens, call.heads}, wide_options(q));
    out.narrow(0, plan.rows, call.tokens - plan.rows).zero_();
    lse.narrow(0, plan.rows, call.tokens - plan.rows).fill_(-std::numeric_limits<double>::infinity());
    task.blocks = plan.blocks;
    const Tensor values = pooled_empty({call.key_heads, plan.blocks, call.size, cpu::kKeys}, q.options());
    task.values = data<E>(values);
    const int64_t scratch = RLHF_DISPATCH(attention_scratch, task);
    const double flops = call.flops(plan);
    const int64_t sequences = static_cast<int64_t>(plan.sequences.size());
    cpu::each_task(sequences * call.key_heads, flops / 16, scratch, [&](int64_t number, char* memory) {
      const cpu::Sequence& s = plan.sequences[number / call.key_heads];
      for (int64_t block = 0; block * cpu::kKeys < s.length; ++block)
        RLHF_DISPATCH(pack_values, task, s, block, number % call.key_heads, memory);
    });
    const std::vector<int64_t> order = plan.longest_first();
    cpu::each_task(static_cast<int64_t>(order.size()) * call.key_heads, flops, scratch,
                   [&](int64_t number, char* memory) {
                     const cpu::Tile& tile = plan.tiles[order[number / call.key_heads]];
                     RLHF_DISPATCH(attention, task, plan.sequences[tile.sequence], tile.first,
                                   number % call.key_heads, data<E>(out), lse.mutable_data_ptr<Wide<E>>(),
                                   memory);
                   });
    return {out, lse};
  });
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const MaybeTensor& grad_lse,
                                                      const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& out, const Tensor& lse,
                                                      const Tensor& cu_seqlens,
                                                      const MaybeTensor& responses_per_prompt, double scale,
                                                      bool causal, std::optional<int64_t> window) {
  const Call call(q, k, v, cu_seqlens, scale, causal, window);
  for (const auto& [name, x] : {std::pair{"grad_out", grad_out}, std::pair{"out", out}})
    TORCH_CHECK_VALUE(x.sizes() == call.q.sizes() && x.scalar_type() == q.scalar_type(), name,
                      ": expected shape ", call.q.sizes(), " of ", q.scalar_type());
  if (call.heads == 0) return {at::empty_like(call.q), at::zeros_like(call.k), at::zeros_like(call.v)};
  const Tensor upstream = dense_rows(grad_out), result = dense_rows(out), norms = lse.contiguous();
  const Tensor upstream_lse = grad_lse.has_value() ? grad_lse->contiguous() : Tensor();
  return of_type(q, "q", [&]<typename E>(E) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = Wide<E>;
    Attention<E> forward = call.task<E>();
    const AttentionPlan plan(call.cu_seqlens, responses_per_prompt, call.tokens, causal, call.window,
                             forward.tile_tokens());
    const Tensor grad_q = pooled_empty(call.q.sizes(), q.options());
    const Tensor grad_k = pooled_empty(call.k.sizes(), q.options()),
                 grad_v = pooled_empty(call.k.sizes(), q.options());
    for (const Tensor& gradient : {grad_q, grad_k, grad_v})
      gradient.narrow(0, plan.rows, call.tokens - plan.rows).zero_();
    const int64_t tiles = static_cast<int64_t>(plan.tiles.size()), heads = call.key_heads;
    const Tensor partial = pooled_empty({plan.slots, heads, call.size, forward.lanes()}, wide_options(q));
    const int64_t bytes = RLHF_DISPATCH(attention_pack_bytes, forward);
    const Tensor packs = pooled_empty({tiles * heads * bytes}, q.options().dtype(at::kByte));
    const AttentionGradient<E> task{forward,
                                    rows<E>(result),
                                    rows<E>(upstream),
                                    pointer<T>(norms),
                                    pointer<T>(upstream_lse),
                                    data<E>(grad_q),
                                    data<E>(grad_k),
                                    data<E>(grad_v),
                                    partial.mutable_data_ptr<T>(),
                                    reinterpret_cast<char*>(packs.mutable_data_ptr<uint8_t>())};
    const double flops = 2.5 * call.flops(plan);
    int64_t longest = 0;
    for (const cpu::Chunk& chunk : plan.chunks) longest = std::max(longest, chunk.count);
    const int64_t scratch = RLHF_DISPATCH(attention_gradient_scratch, forward, longest);
    cpu::each_task(tiles * heads, flops / 16, scratch, [&](int64_t number, char* memory) {
      const int64_t index = number / heads;
      const cpu::Tile& tile = plan.tiles[index];
      RLHF_DISPATCH(pack_queries, task, plan.sequences[tile.sequence], tile, index, number % heads, memory);
    });
    const int64_t chunks = static_cast<int64_t>(plan.chunks.size());
    cpu::each_task(chunks * heads, flops, scratch, [&](int64_t number, char* memory) {
      RLHF_DISPATCH(attention_gradient, task, plan.sequences.data(), plan.tiles.data(),
                    plan.chunks[number / heads], number % heads, memory);
    });
    cpu::each_task(tiles * heads, flops / 32, scratch, [&](int64_t number, char* memory) {
      const cpu::Tile& tile = plan.tiles[number / heads];
      RLHF_DISPATCH(sum_query_gradients, task, plan.sequences[tile.sequence], tile, number % heads, memory);
    });
    return {grad_q, grad_k, grad_v};
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) {
  library.impl("attention", &attention);
  library.impl("attention_backward", &attention_backward);
}

}  // namespace rlhf
