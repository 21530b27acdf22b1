"""The clipped policy loss that ``ppo_loss`` and ``grpo_loss`` are two ways to call, and its eager definition.

N packed tokens, B sequences, w_t a token's weight (``aggregate.py``), ℓ = logprobs − old_logprobs, sg: no gradient.

    level="token"     ρ_t = exp(clamp(ℓ_t, ±20))
    level="sequence"  ρ_t = exp(clamp(mean of ℓ over the valid tokens of t's sequence, ±20))             (GSPO)
    clip              objective_t = min(ρ_t·A_t, clip(ρ_t, 1−clip_low, 1+clip_high)·A_t)
                      with dual_clip c and A_t < 0: max(objective_t, c·A_t)
    cispo             objective_t = sg(clip(ρ_t, 1−clip_low, 1+clip_high))·A_t·logprobs_t: every token keeps a gradient
    policy_loss = −Σ w_t·importance_t·objective_t
    value_loss  =  Σ w_t·½·max((V_t − R_t)², (clamp(V_t, V_old,t ± value_clip) − R_t)²)
    loss = policy_loss + value_coef·value_loss − entropy_coef·Σ w_t·H_t + kl_coef·Σ w_t·kl_t

A backend computes loss, metrics and gradients in one pass: the loss is a scalar, so the gradients need only be
multiplied by what comes from above (csrc/autograd.cpp, ``triton/registration.py``).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .aggregate import sequence_of, sums_of_sequences, token_weights
from .kl import kl_estimate

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ±this (e^20 ≈ 5e8 still squares in float32); outside the gradient is zero."""

METRICS = (
    "policy_loss", "value_loss", "entropy", "kl", "approx_kl", "clip_frac", "ratio_mean", "ratio_max",
    "value_clip_frac",
)  # fmt: skip
"""The first four are aggregated as the loss is; the others are means over this call's valid tokens, and a maximum."""

Metrics = dict[str, Tensor]
Number = float | Tensor
"""A number, or a scalar tensor that stays on its device."""


class Terms(NamedTuple):
    """The arguments of one loss, checked: per-token tensors ``[N]`` of one device; see ``ppo_loss`` for each."""

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor | None
    values: Tensor | None
    old_values: Tensor | None
    returns: Tensor | None
    entropy: Tensor | None
    ref_logprobs: Tensor | None
    importance: Tensor | None
    cu_seqlens: Tensor | None
    mean: Number | None  # of the advantages; with var, they are whitened
    var: Number | None
    denominator: Number | None
    objective: str  # clip or cispo
    level: str  # token or sequence
    aggregate: str
    kl_estimator: str
    clip_low: float
    clip_high: float
    dual_clip: float | None
    value_clip: float | None
    value_coef: float
    entropy_coef: float
    kl_coef: float
    shift_mean: bool

    @property
    def dtype(self) -> torch.dtype:
        """What the loss is computed in."""
        first = (self.logprobs, self.old_logprobs, self.advantages, self.values, self.old_values, self.returns)
        return checks.statistics_dtype(*first, self.entropy, self.ref_logprobs, self.importance)


def eager(x: Terms) -> tuple[Tensor, Metrics]:
    """The definition."""
    valid = torch.ones_like(x.logprobs, dtype=torch.bool) if x.mask is None else x.mask

    def learnt(tensor: Tensor) -> Tensor:
        # 0 where masked, so that nothing a masked slot holds can leak
        return torch.where(valid, tensor.to(x.dtype), 0.0)

    def fixed(tensor: Tensor) -> Tensor:
        return learnt(tensor.detach())

    def mean(terms: Tensor) -> Tensor:
        return fixed(terms).sum() / valid.sum().clamp(min=1)

    weights = token_weights(valid, x.aggregate, x.cu_seqlens, x.denominator, x.dtype)
    logprobs, advantages = learnt(x.logprobs), fixed(x.advantages)
    log_ratio = logprobs - fixed(x.old_logprobs)
    if x.level == "sequence" and x.cu_seqlens is not None:
        log_ratio = _sequence_means(log_ratio, valid, x.cu_seqlens)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    if x.mean is not None and x.var is not None:
        advantages = whitened(advantages, x.mean, x.var, shift_mean=x.shift_mean)
    if x.objective == "cispo":
        bounded = ratio.detach().clamp(1 - x.clip_low, 1 + x.clip_high)
        objective, clipped = bounded * advantages * logprobs, bounded != ratio
    else:
        objective, clipped = _clipped_objective(ratio, advantages, x.clip_low, x.clip_high, x.dual_clip)
    if x.importance is not None:
        objective = objective * fixed(x.importance)

    zero = weights.new_zeros(())
    parts = {"policy_loss": -(weights * objective).sum(), "value_loss": zero, "entropy": zero, "kl": zero}
    value_clipped = torch.zeros_like(valid)
    if x.values is not None and x.returns is not None:
        anchor = None if x.old_values is None else fixed(x.old_values)
        errors, value_clipped = _value_errors(learnt(x.values), anchor, fixed(x.returns), x.value_clip)
        parts["value_loss"] = (weights * errors).sum()
    if x.entropy is not None:
        parts["entropy"] = (weights * learnt(x.entropy)).sum()
    if x.ref_logprobs is not None:
        parts["kl"] = (weights * kl_estimate(logprobs - fixed(x.ref_logprobs), x.kl_estimator)).sum()
    loss = parts["policy_loss"] + x.value_coef * parts["value_loss"]
    loss = loss - x.entropy_coef * parts["entropy"] + x.kl_coef * parts["kl"]
    metrics = {name: part.detach() for name, part in parts.items()} | {
        "approx_kl": mean(torch.expm1(log_ratio) - log_ratio),  # k3 of KL(π_old‖π)
        "clip_frac": mean(clipped),
        "ratio_mean": mean(ratio),
        "ratio_max": torch.cat([fixed(ratio), ratio.new_zeros(1)]).max(),
        "value_clip_frac": mean(value_clipped),
    }
    return loss, metrics


def whitened(advantages: Tensor, mean: Number, var: Number, *, shift_mean: bool = True) -> Tensor:
    """(A − mean)·(var + 1e-8)^{−1/2}, plus the mean again where it is not to be shifted (any shape)."""
    scale = (torch.as_tensor(var, dtype=advantages.dtype, device=advantages.device) + 1e-8).rsqrt()
    scaled = (advantages - mean) * scale
    return scaled if shift_mean else scaled + mean


def _clipped_objective(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """``[N]`` the objective, and where the clipped term is the one taken."""
    free = ratio * advantages
    bound = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    objective = torch.minimum(free, bound)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return objective, bound < free


def _value_errors(
    values: Tensor, old_values: Tensor | None, returns: Tensor, value_clip: float | None
) -> tuple[Tensor, Tensor]:
    """``[N]`` ½·max(unclipped², clipped²), and where the clipped one is larger."""
    free = (values - returns).square()
    if old_values is None or value_clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    # V itself where it is near: V_old + (V − V_old) would differ from it by rounding, and count as clipped.
    bound = (values.clamp(old_values - value_clip, old_values + value_clip) - returns).square()
    return torch.maximum(free, bound) / 2, bound > free


def _sequence_means(terms: Tensor, valid: Tensor, cu_seqlens: Tensor) -> Tensor:
    """``[N]`` the mean over the valid tokens of each token's sequence; terms are 0 where not valid."""
    lengths = sums_of_sequences(valid.to(terms.dtype), cu_seqlens).clamp(min=1)
    return (sums_of_sequences(terms, cu_seqlens) / lengths)[sequence_of(cu_seqlens, len(terms))]


def check_tokens(logprobs: Tensor, mask: Tensor | None, **others: Tensor | None) -> None:
    """Every given tensor is floating and ``[N]``, the mask bool."""
    checks.floating(logprobs, "logprobs", (-1,))
    shape = (len(logprobs),)
    checks.boolean(mask, "mask", shape, logprobs)
    for name, tensor in others.items():
        checks.floating(tensor, name, shape, logprobs)


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
