"""``attention`` in C++: csrc/cpu/attention.cpp."""

import torch
from torch import Tensor

from .. import attention
from .products import widens
from .scalars import BUILT, add_cpu

HEAD_SIZES = (32, 64, 96, 128)

if BUILT:

    @torch.library.register_fake("rlhf::attention")  # type: ignore[untyped-decorator]
    def _shapes(q: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2], dtype=dtype)

    @torch.library.register_fake("rlhf::attention_backward")  # type: ignore[untyped-decorator]
    def _gradients(
        grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, *rest: object
    ) -> tuple[Tensor, ...]:
        return q.new_empty(q.shape), k.new_empty(k.shape), k.new_empty(k.shape)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    responses_per_prompt: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    dtype = q.dtype
    if widens(dtype):
        q, k, v = q.float(), k.float(), v.float()
    out, lse = torch.ops.rlhf.attention(q, k, v, cu_seqlens, responses_per_prompt, scale, causal, window)
    return out.to(dtype), lse if return_lse else None


def refuses(q: Tensor, *_: object) -> str | None:
    """Why a call cannot be computed, or None."""
    return None if q.shape[2] in HEAD_SIZES else f"takes head sizes {', '.join(map(str, HEAD_SIZES))}, not {q.shape[2]}"


add_cpu(attention.OP, _run, refuses)
