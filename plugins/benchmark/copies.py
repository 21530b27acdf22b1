"""Our own kernels where nothing is shared: what sharing a prompt has to be compared with.

P·G sequences, each behind a copy of its prompt, which is made beforehand; L + R tokens each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.bench.case import Case


@dataclass
class Copies:
    """The kernel that ``backend="auto"`` takes, on a copy of the prompt for each that shares it."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "baseline"
    ops: ClassVar[tuple[str, ...]] = ("attention_shared", "decode_attention_shared")

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """The definition runs anywhere."""
        return None

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """The padded layout, which has no padding here, is the packed one of the copies."""
        x = case.padded
        if op == "decode_attention_shared":
            return lambda: {"out": kernels.decode_attention(x["q"], x["k_cache"], x["v_cache"], x["lengths"])}
        cu_seqlens = F.pad(x["lengths"].cumsum(0), (1, 0)).int()

        def run() -> dict[str, Tensor]:
            q, k, v = (x[name].flatten(0, 1) for name in ("q", "k", "v"))
            return {"out": kernels.attention(q, k, v, cu_seqlens).view_as(x["q"])}

        return run
