"""GRPO done right: no length and no spread in the loss."""

from dataclasses import dataclass
from typing import ClassVar

from .grpo import GRPO


@dataclass
class DrGRPO(GRPO):
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, §3.2): GRPO without its two biases, and without a KL.

    A_i = r_i − mean of its group;  loss = −1/(responses · longest allowed) Σ_i Σ_t min(ρ_t·A_i, clip(ρ_t, 1 ± ε)·A_i)
    """

    rlhf_api: ClassVar[int] = 1

    kl_coef: float = 0.0  # β, the weight of the KL to the reference
    scale_by_std: bool = False  # advantages are not divided by the group's std
    aggregate: str = "constant"  # no length in the loss
