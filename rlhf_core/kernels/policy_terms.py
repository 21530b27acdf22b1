"""What PPO and its relatives share: the ratio, whitening, the clipped objective, the metrics.

N packed tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ±this (e^20 ≈ 5e8 still squares in float32); outside the gradient is zero."""

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Keep:
    """Cleans per-token inputs: ``dtype``, and 0 where masked, so that nothing a masked slot holds can leak."""

    valid: Tensor
    dtype: torch.dtype

    @staticmethod
    def of(mask: Tensor | None, logprobs: Tensor, *others: Tensor | None) -> "Keep":
        """Keep what ``mask`` says (None: all), in the dtype of statistics."""
        valid = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
        return Keep(valid, checks.statistics_dtype(logprobs, *others))

    def learnt(self, tensor: Tensor) -> Tensor:
        """Of something that gets a gradient."""
        return torch.where(self.valid, tensor.to(self.dtype), 0.0)

    def fixed(self, tensor: Tensor) -> Tensor:
        """Of something that is a constant."""
        return self.learnt(tensor.detach())

    def mean(self, terms: Tensor) -> Tensor:
        """Over the valid tokens, without gradient; 0 without any."""
        return self.fixed(terms).sum() / self.valid.sum().clamp(min=1)


def whitened(advantages: Tensor, mean: "float | Tensor", var: "float | Tensor", *, shift_mean: bool = True) -> Tensor:
    """(A − mean)·(var + 1e-8)^{−1/2}, plus the mean again where it is not to be shifted (any shape)."""
    scale = (torch.as_tensor(var, dtype=advantages.dtype, device=advantages.device) + 1e-8).rsqrt()
    scaled = (advantages - mean) * scale
    return scaled if shift_mean else scaled + mean


def clipped_objective(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """``[N]`` min(ρA, clip(ρ, 1−low, 1+high)·A), and where the clipped term is the one taken.

    With ``dual_clip`` c, an objective of a negative advantage is at least c·A (arXiv:1912.09729).
    """
    free = ratio * advantages
    bound = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    objective = torch.minimum(free, bound)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return objective, bound < free


def ratio_metrics(keep: Keep, log_ratio: Tensor, ratio: Tensor, clipped: Tensor) -> Metrics:
    """Means over the valid tokens of this call, and the largest ratio."""
    return {
        "approx_kl": keep.mean(torch.expm1(log_ratio) - log_ratio),  # k3 of KL(π_old‖π)
        "clip_frac": keep.mean(clipped),
        "ratio_mean": keep.mean(ratio),
        "ratio_max": torch.cat([keep.fixed(ratio), ratio.new_zeros(1)]).max(),
    }


def check_tokens(logprobs: Tensor, mask: Tensor | None, **others: Tensor | None) -> None:
    """Every given tensor is floating and ``[N]``, the mask bool."""
    checks.floating(logprobs, "logprobs", (-1,))
    checks.boolean(mask, "mask", (len(logprobs),), logprobs)
    for name, tensor in others.items():
        checks.floating(tensor, name, (len(logprobs),), logprobs)


def check_options(
    clip_low: float, clip_high: float, dual_clip: float | None, kl_coef: float, ref_logprobs: Tensor | None,
    entropy_coef: float, entropy: Tensor | None,
) -> None:  # fmt: skip
    """Raise ``ValueError`` where a number is out of range or lacks its tensor."""
    checks.expect(0 <= clip_low <= 1, "clip_low", "a number from 0 to 1", clip_low)
    checks.expect(clip_high >= 0, "clip_high", "a number ≥ 0", clip_high)
    checks.expect(dual_clip is None or dual_clip > 1, "dual_clip", "a number > 1", dual_clip)
    checks.expect(kl_coef == 0 or ref_logprobs is not None, "kl_coef", "0 without ref_logprobs", kl_coef)
    checks.expect(entropy_coef == 0 or entropy is not None, "entropy_coef", "0 without entropy", entropy_coef)
