// rlhf::decode_attention for CUDA tensors: checks, outputs, launch.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "binding.h"
#include "decode_attention.h"

namespace rlhf {
namespace {

using at::Tensor;

cuda::Float float_of(const Tensor& q) {
  switch (q.scalar_type()) {
    case at::kFloat:
      return cuda::Float::float32;
    case at::kBFloat16:
      return cuda::Float::bfloat16;
    case at::kHalf:
      return cuda::Float::float16;
    default:
      TORCH_CHECK_VALUE(false, "q: expected float32, bfloat16 or float16, got ", q.scalar_type());
  }
}

// Of this shape, on q's device, of q's dtype, with heads that are dense. The strides are those of all other
// dimensions.
Tensor rows(const Tensor& tensor, const char* name, at::IntArrayRef shape, const Tensor& q) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == q.device(), name, ": expected a tensor on ", q.device(), ", got ",
                    tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == q.scalar_type(), name, ": expected ", q.scalar_type(), ", got ",
                    tensor.scalar_type());
  return tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

Tensor decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                        const MaybeTensor& prefix_k, const MaybeTensor& prefix_v,
                        const MaybeTensor& prefix_of, const MaybeTensor& prefix_lengths, double scale) {
  TORCH_CHECK_VALUE(q.is_cuda(), "q: expected a CUDA tensor, got one on ", q.device());
  TORCH_CHECK_VALUE(q.dim() == 3, "q: expected shape [B,Hq,D], got ", q.sizes());
  TORCH_CHECK_VALUE(k_cache.dim() == 4, "k_cache: expected shape [B,S,Hk,D], got ", k_cache.sizes());
  const at::Device device = q.device();
  const int64_t sequences = q.size(0), heads = q.size(1), size = q.size(2);
  const int64_t slots = k_cache.size(1), key_heads = k_cache.size(2);
  TORCH_CHECK_VALUE(size == 32 || size == 64 || size == 96 || size == 128,
                    "q: expected heads of 32, 64, 96 or 128, got ", size);
  TORCH_CHECK_VALUE(key_heads > 0 && heads % key_heads == 0,
                    "k_cache: expected a number of heads that divides q's ", heads, ", got ", key_heads);
  cuda::DecodeAttention task{};
  task.dtype = float_of(q);
  const Tensor queries = rows(q, "q", q.sizes(), q);
  const Tensor k = rows(k_cache, "k_cache", {sequences, slots, key_heads, size}, q);
  const Tensor v = rows(v_cache, "v_cache", k_cache.sizes(), q);
  const Tensor filled = dense(lengths, "lengths", sequences, at::kInt, device);
  Tensor pk, pv, of, prefix_filled;
  if (prefix_k.has_value()) {
    TORCH_CHECK_VALUE(prefix_v.has_value() && prefix_of.has_value(),
                      "prefix_of: expected all of prefix_k, "
                      "prefix_v, prefix_of");
    TORCH_CHECK_VALUE(prefix_k->dim() == 4, "prefix_k: expected shape [P,L,Hk,D], got ", prefix_k->sizes());
    task.prompts = prefix_k->size(0);
    task.prefix_slots = prefix_k->size(1);
    pk = rows(*prefix_k, "prefix_k", {task.prompts, task.prefix_slots, key_heads, size}, q);
    pv = rows(*prefix_v, "prefix_v", prefix_k->sizes(), q);
    of = dense(prefix_of, "prefix_of", sequences, at::kInt, device);
    prefix_filled = dense(prefix_lengths, "prefix_lengths", task.prompts, at::kInt, device);
    task.prefix_k = pk.const_data_ptr();
    task.prefix_k_prompt = pk.stride(0), task.prefix_k_slot = pk.stride(1), task.prefix_k_head = pk.stride(2);
    task.prefix_v = pv.const_data_ptr();
    task.prefix_v_prompt = pv.stride(0), task.prefix_v_slot = pv.stride(1), task.prefix_v_head = pv.stride(2);
  }

  const c10::cuda::CUDAGuard guard(device);
  const Tensor out = at::empty(q.sizes(), q.options().memory_format(at::MemoryFormat::Contiguous));
  task.sequences = sequences;
  task.heads = heads;
  task.key_heads = key_heads;
  task.size = size;
  task.slots = slots;
  task.scale = static_cast<float>(scale);
  task.q = queries.const_data_ptr();
  task.q_sequence = queries.stride(0), task.q_head = queries.stride(1);
  task.k = k.const_data_ptr();
  task.k_sequence = k.stride(0), task.k_slot = k.stride(1), task.k_head = k.stride(2);
  task.v = v.const_data_ptr();
  task.v_sequence = v.stride(0), task.v_slot = v.stride(1), task.v_head = v.stride(2);
  task.lengths = pointer<int32_t>(filled);
  task.prefix_of = pointer<int32_t>(of);
  task.prefix_lengths = pointer<int32_t>(prefix_filled);
  task.out = out.mutable_data_ptr();
  start("decode_attention", &rlhf_decode_attention, rlhf_decode_attention_workspace(&task), task, device);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rlhf, CUDA, library) { library.impl("decode_attention", &decode_attention); }

}  // namespace rlhf
