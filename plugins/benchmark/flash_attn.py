"""FlashAttention's varlen kernel.

N packed tokens, H heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.bench.case import Case


@dataclass
class FlashAttn:
    """``flash_attn.flash_attn_varlen_func``, causal, on the packed tensors."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "peer"
    ops: ClassVar[tuple[str, ...]] = ("attention",)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Whether it is there, and can."""
        if not find_spec("flash_attn"):
            return "not installed"
        if device.type != "cuda":
            return "needs a CUDA device"
        return None if dtype in (torch.bfloat16, torch.float16) else "takes bfloat16 and float16"

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """``q [N, H, D]``, ``k`` and ``v`` of as many or fewer heads, ``cu_seqlens``."""
        from flash_attn import flash_attn_varlen_func

        x = case.packed
        offsets, longest = x["cu_seqlens"], int(x["cu_seqlens"].diff().max())

        def run() -> dict[str, Tensor]:
            found = flash_attn_varlen_func(x["q"], x["k"], x["v"], offsets, offsets, longest, longest, causal=True)
            return {"out": found}

        return run
