"""``decode_attention`` in C++ and CUDA: csrc/cpu/decode_attention.cpp, csrc/cuda/decode_attention.cu."""

import torch
from torch import Tensor

from .. import decode_attention
from .attention import refuses
from .products import widens
from .scalars import BUILT, add_cpu, add_cuda

if BUILT:

    @torch.library.register_fake("rlhf::decode_attention")  # type: ignore[untyped-decorator]
    def _shapes(q: Tensor, *rest: object) -> Tensor:
        return torch.empty_like(q, memory_format=torch.contiguous_format)


def _run(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    scale: float,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    prefix_of: Tensor | None,
    prefix_lengths: Tensor | None,
) -> Tensor:
    caches = (k_cache, v_cache, prefix_k, prefix_v)
    given = [None if x is None else x.detach() for x in (q, *caches)]
    if q.device.type == "cpu" and widens(q.dtype):
        given = [None if x is None else x.float() for x in given]
    query, k, v, shared_k, shared_v = given
    out: Tensor = torch.ops.rlhf.decode_attention(
        query, k, v, lengths, shared_k, shared_v, prefix_of, prefix_lengths, scale
    )
    return out.to(q.dtype)


def _on_gpu(q: Tensor, *_: object) -> str | None:
    return "takes float32 and narrower, not float64" if q.dtype == torch.float64 else refuses(q)


add_cpu(decode_attention.OP, _run, refuses)
add_cuda(decode_attention.OP, _run, _on_gpu)
