"""torchrl's GAE, between our reward shaping and whitening, which it has no part in.

B sequences, T tokens each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case, widened


@dataclass
class TorchRL:
    """``torchrl.objectives.value.functional.vec_generalized_advantage_estimate``: a convolution over time."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "peer"
    ops: ClassVar[tuple[str, ...]] = ("shaped_gae",)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Whether it is there."""
        return None if find_spec("torchrl") else "not installed"

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """Its ``[B, T, 1]`` tensors; a trajectory is done at a response's last token."""
        from torchrl.objectives.value.functional import vec_generalized_advantage_estimate  # seconds to import

        x = case.padded
        gamma, lam, kl_coef = (case.number(name) for name in ("gamma", "lam", "kl_coef"))
        rows, last = torch.arange(len(x["lengths"]), device=x["lengths"].device), x["lengths"] - 1
        done = torch.zeros_like(x["mask"])
        done[rows, last] = True
        done[:, -1] = True

        @torch.no_grad()
        def run() -> dict[str, Tensor]:
            values, kl = widened(x["values"]), widened(x["logprobs"]) - widened(x["ref_logprobs"])
            reward = -kl_coef * kl
            reward[rows, last] += widened(x["scores"])
            following = F.pad(values[:, 1:], (0, 1))
            advantages, returns = vec_generalized_advantage_estimate(
                gamma, lam, values[..., None], following[..., None], reward[..., None], done[..., None]
            )
            advantages = advantages[..., 0]
            count = x["mask"].sum()
            mean = advantages.sum() / count
            var = (advantages - mean).mul_(x["mask"]).square_().sum() / count
            return {"advantages": advantages, "returns": returns[..., 0], "kl": kl, "mean": mean, "var": var}

        return run
