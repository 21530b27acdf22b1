"""Group sequence policy optimisation: one ratio a response."""

from dataclasses import dataclass
from typing import Any, ClassVar

from .grpo import GRPO


@dataclass
class GSPO(GRPO):
    """GSPO (Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7): GRPO whose ratio is of the whole response.

    s_i = (π(y_i|x) / π_old(y_i|x))^(1/|y_i|);
    loss = −mean over responses of min(s_i·A_i, clip(s_i, 1−ε, 1+ε_high)·A_i)
    """

    rlhf_api: ClassVar[int] = 1

    kl_coef: float = 0.0  # β, the weight of the KL to the reference
    clip: float = 3e-4  # ε: ratios of sequences are near 1
    clip_high: float | None = 4e-4  # the upper side

    def ratios(self) -> dict[str, Any]:
        """One ratio a sequence."""
        return super().ratios() | {"level": "sequence"}
