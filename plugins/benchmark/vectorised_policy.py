"""The policy losses in plain PyTorch, on packed tokens: each value once, in place where it can be, gradients by hand.

N packed tokens, w a token's weight 1/n (0 where masked), ρ = exp(logprobs − old_logprobs).

    ∂policy_loss/∂logprobs = −w·ρ·A  where the clipped term is not the one taken, else 0
    ∂value_loss/∂values    =  w·(V − R)  where the clipped error is not the larger, else 0
    ∂kl/∂logprobs          =  w·(1 − e^{ref − logprobs})

The gradients by hand make it twice as fast as autograd over the same ops (two AVX-512 cores, 64×512 … 256×2048), and
torch.compile of it 1.3 times as fast as of those. Left out, in its favour: the clamp of the log-ratio to ±20.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_core.bench.case import Case, widened

from .known_gradient import with_gradients

Function = Callable[..., dict[str, Tensor]]
Run = Callable[[], dict[str, Tensor]]


def prepare_ppo(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``ppo_loss`` on a case; ``transform`` may compile it."""
    function = transform(ppo_loss)
    names = ("logprobs", "values", "old_logprobs", "advantages", "old_values", "returns", "mask", "mean", "var")
    tensors = [case.packed[name] for name in names]
    numbers = [case.number(name) for name in ("clip", "value_clip", "value_coef")]
    return lambda: function(*tensors, *numbers)


def prepare_grpo(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``grpo_loss`` on a case; ``transform`` may compile it."""
    function = transform(grpo_loss)
    names = ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "mask")
    tensors = [case.packed[name] for name in names]
    numbers = [case.number(name) for name in ("clip_low", "clip_high", "kl_coef")]
    return lambda: function(*tensors, *numbers)


def ppo_loss(
    logprobs: Tensor, values: Tensor, old_logprobs: Tensor, advantages: Tensor, old_values: Tensor, returns: Tensor,
    mask: Tensor, mean: Tensor, var: Tensor, clip: float, value_clip: float, value_coef: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Loss and metrics; gradients reach ``logprobs`` and ``values``."""
    with torch.no_grad():
        w = weights(mask, widened(logprobs))
        whitened = (widened(advantages) - mean).mul_(torch.rsqrt(var + 1e-8))
        metrics, gradient = clipped_objective(widened(logprobs), widened(old_logprobs), whitened, w, clip, clip)
        error = widened(values) - widened(returns)
        around = widened(old_values)
        bounded = widened(values).clamp(around - value_clip, around + value_clip).sub_(widened(returns))
        clipped = bounded.abs() > error.abs()
        value_loss = weighted_sum(torch.where(clipped, bounded, error).square_(), w) / 2
        value_gradient = error.mul_(w).mul_(value_coef).masked_fill_(clipped, 0)
        metrics |= {"value_loss": value_loss, "value_clip_frac": weighted_sum(clipped, w)}
        total = metrics["policy_loss"] + value_coef * value_loss
    return {
        "loss": with_gradients(total, {logprobs: gradient.to(logprobs.dtype), values: value_gradient.to(values.dtype)})
    } | metrics


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float,
    clip_high: float, kl_coef: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Loss and metrics; the gradient reaches ``logprobs``."""
    with torch.no_grad():
        new = widened(logprobs)
        w = weights(mask, new)
        metrics, gradient = clipped_objective(new, widened(old_logprobs), widened(advantages), w, clip_low, clip_high)
        against = widened(ref_logprobs) - new
        grown = torch.expm1(against)
        metrics["kl"] = weighted_sum(grown - against, w)
        gradient.addcmul_(grown, w, value=-kl_coef)
        total = metrics["policy_loss"] + kl_coef * metrics["kl"]
    return {"loss": with_gradients(total, {logprobs: gradient.to(logprobs.dtype)})} | metrics


def clipped_objective(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, w: Tensor, clip_low: float, clip_high: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Policy loss and its metrics, and the gradient of ``logprobs``."""
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    free = ratio * advantages
    bound = ratio.clamp(1 - clip_low, 1 + clip_high).mul_(advantages)
    clipped = bound < free
    metrics = {
        "policy_loss": -weighted_sum(torch.minimum(free, bound), w),
        "approx_kl": weighted_sum(torch.expm1(log_ratio).sub_(log_ratio), w),
        "clip_frac": weighted_sum(clipped, w),
        "ratio_mean": weighted_sum(ratio, w),
        "ratio_max": ratio.mul_(w > 0).max(),
    }
    return metrics, free.mul_(w).neg_().masked_fill_(clipped, 0)


def weights(mask: Tensor, like: Tensor) -> Tensor:
    """1/n where valid, else 0."""
    return mask.to(like.dtype) / mask.sum()


def weighted_sum(terms: Tensor, w: Tensor) -> Tensor:
    """Of terms; torch.dot would save a pass, but adds in a row: off by 1e-6 at 4 million tokens."""
    return (terms * w).sum()
