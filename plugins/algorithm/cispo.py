"""Clipped importance weights: no token loses its gradient."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from rlhf_core.errors import UserError
from rlhf_core.run import Run

from .grpo import GRPO


@dataclass
class CISPO(GRPO):
    """CISPO (MiniMax-M1, 2025, arXiv:2506.13585, eq. 4 and 5): the weight is clipped, not the objective.

    loss = −1/Σ|o_i| Σ_i Σ_t sg(clip(ρ_t, 1−ε, 1+ε_high)) · A_i · log π(o_t),  sg: no gradient
    """

    rlhf_api: ClassVar[int] = 1

    kl_coef: float = 0.0  # β, the weight of the KL to the reference
    clip: float = 1.0  # ε: no bound from below, as in the paper
    clip_high: float | None = 4.0  # the upper side
    aggregate: str = "token"  # every token counts the same

    def setup(self, run: Run) -> nn.Module:
        """As GRPO."""
        if self.dual_clip is not None:
            raise UserError(f"algorithm.dual_clip: got {self.dual_clip}, but CISPO clips only weights; set null")
        return super().setup(run)

    def ratios(self) -> dict[str, Any]:
        """Weights without a gradient of their own."""
        return super().ratios() | {"kind": "cispo"}
