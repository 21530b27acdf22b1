"""The losses of critic-free policy optimisation: GRPO, GSPO, CISPO, Dr. GRPO.

N packed tokens, B sequences, w_t a token's weight (``aggregate.py``), ℓ = logprobs − old_logprobs, sg: no gradient.

    level="token"     ρ_t = exp(clamp(ℓ_t, ±20))
    level="sequence"  ρ_t = exp(clamp(mean of ℓ over the valid tokens of t's sequence, ±20))             (GSPO)
    kind="grpo"       objective_t = min(ρ_t·A_t, clip(ρ_t, 1−clip_low, 1+clip_high)·A_t)
    kind="dr_grpo"    the same, with aggregate="constant": no length in the loss
    kind="cispo"      objective_t = sg(clip(ρ_t, 1−clip_low, 1+clip_high))·A_t·logprobs_t: every token keeps a gradient
    loss = −Σ w_t·importance_t·objective_t − entropy_coef·Σ w_t·H_t + kl_coef·Σ w_t·kl_t

All options, and the definition, are in ``policy_loss.py``.

GRPO: Shao et al. (2024), arXiv:2402.03300; GSPO: arXiv:2507.18071; CISPO: arXiv:2506.13585; Dr. GRPO: arXiv:2503.20783
"""

from torch import Tensor

from . import checks
from .aggregate import check_aggregate
from .dispatch import Op
from .kl import ESTIMATORS
from .policy_loss import Metrics, Number, Terms, check_options, check_tokens, eager
from .ppo_loss import Moments

KINDS = ("grpo", "cispo", "dr_grpo")
LEVELS = ("token", "sequence")
VALUE_METRICS = ("value_loss", "value_clip_frac")


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
    denominator: Number | None = None,
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
        backend: eager, cpu, triton, cuda, or None for the configured choice.

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
    mean, var = whiten or (None, None)
    checks.number(mean, "whiten")
    checks.number(var, "whiten")
    terms = Terms(
        logprobs, old_logprobs, advantages, mask, None, None, None, entropy, ref_logprobs, importance,
        cu_seqlens, mean, var, denominator, "cispo" if kind == "cispo" else "clip", level, aggregate, kl_estimator,
        clip_low, clip_high, dual_clip, None, 0.0, entropy_coef, kl_coef, shift_mean,
    )  # fmt: skip
    loss, metrics = OP(backend, logprobs, terms)
    return loss, {name: metric for name, metric in metrics.items() if name not in VALUE_METRICS}


OP = Op("grpo_loss", eager)
