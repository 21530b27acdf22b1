"""PyTorch's own attention over packed sequences.

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
class TorchVarlen:
    """``torch.nn.attention.varlen.varlen_attn``, causal: FlashAttention's kernel as torch ships it."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "peer"
    ops: ClassVar[tuple[str, ...]] = ("attention",)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Whether this torch has it, and it can."""
        if not find_spec("torch.nn.attention.varlen"):
            return "not in this torch"
        if device.type != "cuda":
            return "needs a CUDA device"
        return None if dtype in (torch.bfloat16, torch.float16) else "takes bfloat16 and float16"

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """``q [N, H, D]``, ``k`` and ``v`` of as many or fewer heads, ``cu_seqlens``."""
        from torch.nn.attention.varlen import varlen_attn

        x = case.packed
        offsets, longest = x["cu_seqlens"], int(x["cu_seqlens"].diff().max())
        grouped = x["q"].shape[1] != x["k"].shape[1]

        def run() -> dict[str, Tensor]:
            found = varlen_attn(
                x["q"], x["k"], x["v"], offsets, offsets, longest, longest, window_size=(-1, 0), enable_gqa=grouped
            )
            return {"out": found}

        return run
