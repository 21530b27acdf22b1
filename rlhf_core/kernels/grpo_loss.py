"""The losses of critic-free policy optimisation: GRPO, GSPO, CISPO, Dr. GRPO.

N packed tokens, B sequences, w_t a token's weight (``aggregate.py``), ℓ = logprobs − old_logprobs, sg: no gradient.

    level="token"     ρ_t = exp(clamp(ℓ_t, ±20))
    level="sequence"  ρ_t = exp(clamp(mean of ℓ over the valid tokens of t's sequence, ±20))             (GSPO)
    kind="grpo"       objective_t = min(ρ_t·A_t, clip(ρ_t, 1−clip_low, 1+clip_high)·A_t)
    kind="dr_grpo"    the same, with aggregate="constant": no length in the loss
    kind="cispo"      objective_t = sg(clip(ρ_t, 1−clip_low, 1+clip_high))·A_t·logprobs_t: every token keeps a gradient
    loss = −Σ w_t·importance_t·objective_t − entropy_coef·Σ w_t·H_t + kl_coef·Σ w_t·kl_t

GRPO: Shao et al. (2024), arXiv:2402.03300; GSPO: arXiv:2507.18071; CISPO: arXiv:2506.13585; Dr. GRPO: arXiv:2503.20783
"""

from torch import Tensor

from . import checks
from .aggregate import check_aggregate, sequence_of, sums_of_sequences, token_weights
from .dispatch import Op
from .kl import ESTIMATORS, kl_estimate
from .policy_terms import (
    LOG_RATIO_LIMIT,
    Keep,
    Metrics,
    check_options,
    check_tokens,
    clipped_objective,
    ratio_metrics,
    whitened,
)
from .ppo_loss import Moments

KINDS = ("grpo", "cispo", "dr_grpo")
LEVELS = ("token", "sequence")


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    kind: str = "grpo",
    level: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    whiten: Moments | None = None,
    shift_mean: bool = True,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    importance: Tensor | None = None,
    aggregate: str | None = None,
    cu_seqlens: Tensor | None = None,
    denominator: "float | Tensor | None" = None,
    backend: str | None = None,
) -> tuple[Tensor, Metrics]:
    """A group-relative policy loss and its metrics; gradients reach ``logprobs`` and ``entropy`` alone.

    Args:
        logprobs: ``[N]`` nats, of the policy being trained.
        old_logprobs: ``[N]`` nats, of the policy that sampled.
        advantages: ``[N]`` relative to the group; the same for all tokens of a response.
        mask: ``[N]`` bool, the tokens that count; None means all.
        kind: grpo, cispo or dr_grpo.
        level: token, or sequence for one ratio a sequence (needs ``cu_seqlens``).
        clip_low: the ratio is clipped at 1 − this.
        clip_high: the ratio is clipped at 1 + this.
        dual_clip: as in ``ppo_loss``; refused with cispo.
        whiten: as in ``ppo_loss``.
        shift_mean: as in ``ppo_loss``.
        entropy: as in ``ppo_loss``.
        entropy_coef: as in ``ppo_loss``.
        ref_logprobs: as in ``ppo_loss``.
        kl_coef: as in ``ppo_loss``.
        kl_estimator: as in ``ppo_loss``.
        importance: as in ``ppo_loss``.
        aggregate: token (the default), sequence or constant (``aggregate.py``); dr_grpo is constant.
        cu_seqlens: ``[B+1]`` int32.
        denominator: the global count that replaces this call's own; dr_grpo needs one (responses × longest allowed).
        backend: eager, or None for the configured choice.

    Returns:
        The loss and metrics as ``ppo_loss`` has them, less the value ones.

    Raises:
        ValueError: a wrong shape, dtype, device or option, named.
    """
    checks.one_of(kind, "kind", KINDS)
    checks.one_of(level, "level", LEVELS)
    fixed = {"old_logprobs": old_logprobs, "advantages": advantages, "ref_logprobs": ref_logprobs}
    check_tokens(logprobs, mask, **fixed, importance=importance, entropy=entropy)
    check_options(clip_low, clip_high, dual_clip, kl_coef, ref_logprobs, entropy_coef, entropy)
    aggregate = aggregate or ("constant" if kind == "dr_grpo" else "token")
    constant = kind != "dr_grpo" or aggregate == "constant"
    checks.expect(constant, "aggregate", '"constant" with kind="dr_grpo"', repr(aggregate))
    checks.expect(kind != "cispo" or dual_clip is None, "dual_clip", 'None with kind="cispo"', dual_clip)
    checks.expect(level == "token" or cu_seqlens is not None, "cu_seqlens", 'offsets with level="sequence"', None)
    check_aggregate(aggregate, cu_seqlens, denominator, logprobs)
    checks.one_of(kl_estimator, "kl_estimator", ESTIMATORS)
    return OP(
        backend, logprobs, logprobs, old_logprobs, advantages, mask, kind, level, clip_low, clip_high, dual_clip,
        whiten, shift_mean, entropy, entropy_coef, ref_logprobs, kl_coef, kl_estimator, importance,
        aggregate, cu_seqlens, denominator,
    )  # fmt: skip


def _eager(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    kind: str,
    level: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    whiten: Moments | None,
    shift_mean: bool,
    entropy: Tensor | None,
    entropy_coef: float,
    ref_logprobs: Tensor | None,
    kl_coef: float,
    kl_estimator: str,
    importance: Tensor | None,
    aggregate: str,
    cu_seqlens: Tensor | None,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, Metrics]:
    """The definition."""
    keep = Keep.of(mask, logprobs, old_logprobs, advantages)
    weights = token_weights(keep.valid, aggregate, cu_seqlens, denominator, keep.dtype)
    logprobs, advantages = keep.learnt(logprobs), keep.fixed(advantages)
    log_ratio = logprobs - keep.fixed(old_logprobs)
    if level == "sequence" and cu_seqlens is not None:
        log_ratio = _sequence_means(log_ratio, keep.valid, cu_seqlens)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    if whiten is not None:
        advantages = whitened(advantages, *whiten, shift_mean=shift_mean)
    if kind == "cispo":
        bounded = ratio.detach().clamp(1 - clip_low, 1 + clip_high)
        objective, clipped = bounded * advantages * logprobs, bounded != ratio
    else:
        objective, clipped = clipped_objective(ratio, advantages, clip_low, clip_high, dual_clip)
    if importance is not None:
        objective = objective * keep.fixed(importance)

    zero = weights.new_zeros(())
    parts = {"policy_loss": -(weights * objective).sum(), "entropy": zero, "kl": zero}
    if entropy is not None:
        parts["entropy"] = (weights * keep.learnt(entropy)).sum()
    if ref_logprobs is not None:
        parts["kl"] = (weights * kl_estimate(logprobs - keep.fixed(ref_logprobs), kl_estimator)).sum()
    loss = parts["policy_loss"] - entropy_coef * parts["entropy"] + kl_coef * parts["kl"]
    metrics = {name: part.detach() for name, part in parts.items()}
    return loss, metrics | ratio_metrics(keep, log_ratio, ratio, clipped)


def _sequence_means(terms: Tensor, valid: Tensor, cu_seqlens: Tensor) -> Tensor:
    """``[N]`` the mean over the valid tokens of each token's sequence; terms are 0 where not valid."""
    lengths = sums_of_sequences(valid.to(terms.dtype), cu_seqlens).clamp(min=1)
    return (sums_of_sequences(terms, cu_seqlens) / lengths)[sequence_of(cu_seqlens, len(terms))]


OP = Op("grpo_loss", _eager)
