// rlhf::decode_attention for CPU tensors: checks, sequences by prompt, threads over groups of them.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "decode_attention.h"
#include "parallel.h"
#include "pool.h"
#include "types.h"

namespace rlhf {
namespace {

using at::Tensor;
using cpu::Caches;
using cpu::DecodeGroup;

Tensor cache(const Tensor& x, const char* name, at::IntArrayRef shape, const Tensor& q) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, ": expected shape ", shape, ", got ", x.sizes());
  TORCH_CHECK_VALUE(x.scalar_type() == q.scalar_type(), name, ": expected ", q.scalar_type(), ", got ",
                    x.scalar_type());
  return dense_rows(x);
}

Tensor numbers(const MaybeTensor& x, const char* name, int64_t count, int64_t low, int64_t high) {
  const Tensor found = dense(x, name, count, at::kInt, at::kCPU);
  for (int64_t i = 0; found.defined() && i < count; ++i) {
    const int32_t number = const_data<int32_t>(found)[i];
    TORCH_CHECK_VALUE(number >= low && number <= high, name, ": expected numbers from ", low, " to ", high,
                      ", got ", number);
  }
  return found;
}

template <typename E>
Caches<E> caches(const Tensor& x) {
  if (!x.defined()) return {};
  return {{const_data<E>(x), x.stride(1), x.stride(2)}, x.stride(0), x.size(1)};
}

// Sequences in runs of at most `most` that share a prompt; those without one are alone. `order` holds them,
// prompt by prompt.
std::vector<DecodeGroup> groups(const Tensor& prefix_of, int64_t sequences, int64_t most,
                                std::vector<int32_t>& order) {
  const int32_t* of = prefix_of.defined() ? const_data<int32_t>(prefix_of) : nullptr;
  const auto prompt = [of](int32_t sequence) { return of ? of[sequence] : -1; };
  for (int32_t i = 0; i < sequences; ++i) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return prompt(a) < prompt(b); });
  std::vector<DecodeGroup> found;
  for (int64_t i = 0; i < sequences; ++i) {
    const int32_t own = prompt(order[i]);
    if (own >= 0 && !found.empty() && found.back().prompt == own && found.back().count < most)
      ++found.back().count;
    else
      found.push_back({order.data() + i, 1, own});
  }
  return found;
}

Tensor decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                        const MaybeTensor& prefix_k, const MaybeTensor& prefix_v,
                        const MaybeTensor& prefix_of, const MaybeTensor& prefix_lengths, double scale) {
  TORCH_CHECK_VALUE(q.dim() == 3, "q: expected shape [B,Hq,D], got ", q.sizes());
  TORCH_CHECK_VALUE(k_cache.dim() == 4, "k_cache: expected shape [B,S,Hk,D], got ", k_cache.sizes());
  const int64_t sequences = q.size(0), heads = q.size(1), size = q.size(2), slots = k_cache.size(1);
  const int64_t key_heads = k_cache.size(2);
  TORCH_CHECK_VALUE(size % 32 == 0 && size > 0, "q: expected a head size that is a multiple of 32, got ",
                    size);
  TORCH_CHECK_VALUE(key_heads > 0 && heads % key_heads == 0,
                    "k_cache: expected a number of heads that divides q's ", heads, ", got ", key_heads);
  const Tensor queries = dense_rows(q), k = cache(k_cache, "k_cache", {sequences, slots, key_heads, size}, q);
  const Tensor v = cache(v_cache, "v_cache", {sequences, slots, key_heads, size}, q);
  const Tensor filled = numbers(lengths, "lengths", sequences, 0, slots);
  Tensor pk, pv, of, prompt_lengths;
  if (prefix_k.has_value()) {
    TORCH_CHECK_VALUE(prefix_v.has_value() && prefix_of.has_value() && prefix_k->dim() == 4,
                      "prefix_k: expected shape [P,L,Hk,D], along with prefix_v and prefix_of");
    const int64_t prompts = prefix_k->size(0), longest = prefix_k->size(1);
    pk = cache(*prefix_k, "prefix_k", {prompts, longest, key_heads, size}, q);
    pv = cache(*prefix_v, "prefix_v", {prompts, longest, key_heads, size}, q);
    of = numbers(prefix_of, "prefix_of", sequences, -1, prompts - 1);
    prompt_lengths = numbers(prefix_lengths, "prefix_lengths", prompts, 0, longest);
  }
  const Tensor out = at::empty(q.sizes(), q.options());
  if (out.numel() == 0) return out;
  of_type(q, "q", [&]<typename E>(E) {
    const cpu::Rows<E> rows{const_data<E>(queries), queries.stride(0), queries.stride(1)};
    const cpu::DecodeAttention<E> task{
        {rows, {}, {}, sequences, heads, key_heads, size, 0, scale, false, 0, cpu::product<E>(), nullptr},
        caches<E>(k),
        caches<E>(v),
        caches<E>(pk),
        caches<E>(pv),
        pointer<int32_t>(filled),
        pointer<int32_t>(prompt_lengths)};
    std::vector<int32_t> order;
    const std::vector<DecodeGroup> all = groups(of, sequences, task.attention.tile_tokens(), order);
    const double keys = static_cast<double>(slots + (pk.defined() ? pk.size(1) : 0));
    const double flops = 16.0 * keys * static_cast<double>(sequences * heads * size);  // mostly memory
    cpu::each_task(static_cast<int64_t>(all.size()) * key_heads, flops, RLHF_DISPATCH(decode_scratch, task),
                   [&](int64_t number, char* work) {
                     RLHF_DISPATCH(decode_attention, task, all[number / key_heads], number % key_heads,
                                   data<E>(out), work);
                   });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("decode_attention", &decode_attention); }

}  // namespace rlhf
