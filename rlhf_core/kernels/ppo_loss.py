"""The loss of proximal policy optimisation: clipped policy objective, clipped value loss, entropy bonus, KL.

N packed tokens, w_t a token's weight (``aggregate.py``), ρ_t = exp(clamp(logprobs_t − old_logprobs_t, ±20)).

    policy_loss = −Σ w_t·importance_t·min(ρ_t·A_t, clip(ρ_t, 1−clip_low, 1+clip_high)·A_t)
    value_loss  =  Σ w_t·½·max((V_t − R_t)², (clamp(V_t, V_old,t ± value_clip) − R_t)²)
    loss = policy_loss + value_coef·value_loss − entropy_coef·Σ w_t·H_t + kl_coef·Σ w_t·kl_t

All options, and the definition, are in ``policy_loss.py``.

Schulman et al. (2017), arXiv:1707.06347; dual clip: Ye et al. (2020), arXiv:1912.09729; clip higher: arXiv:2503.14476
"""

from torch import Tensor

from . import checks
from .aggregate import check_aggregate
from .dispatch import Op
from .kl import ESTIMATORS
from .policy_loss import Metrics, Number, Terms, check_options, check_tokens, eager

Moments = tuple[Number, Number]


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    values: Tensor | None = None,
    old_values: Tensor | None = None,
    returns: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    value_clip: float | None = 0.2,
    value_coef: float = 0.5,
    whiten: Moments | None = None,
    shift_mean: bool = True,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    importance: Tensor | None = None,
    aggregate: str = "token",
    cu_seqlens: Tensor | None = None,
    denominator: Number | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Metrics]:
    """PPO's loss and its metrics in one pass; gradients reach ``logprobs``, ``values`` and ``entropy`` alone.

    Args:
        logprobs: ``[N]`` nats, of the policy being trained.
        old_logprobs: ``[N]`` nats, of the policy that sampled.
        advantages: ``[N]``.
        mask: ``[N]`` bool, the tokens that count; None means all. What masked slots hold is never read.
        values: ``[N]`` of the critic being trained; needs ``returns``, and ``old_values`` if clipped.
        old_values: ``[N]`` of the critic at sampling time.
        returns: ``[N]`` what the critic should have said.
        clip_low: the ratio is clipped at 1 − this.
        clip_high: the ratio is clipped at 1 + this.
        dual_clip: c > 1: with a negative advantage the objective is at least c·A.
        value_clip: how far from ``old_values`` the value may move; None does not clip.
        value_coef: weight of the value loss.
        whiten: (mean, var) of the global batch's advantages (``GAE.mean``, ``GAE.var``); None takes them as they are.
        shift_mean: False scales about the mean and keeps it.
        entropy: ``[N]`` nats, of the policy being trained.
        entropy_coef: weight of the entropy bonus.
        ref_logprobs: ``[N]`` nats, of the reference policy, for a KL term in the loss (shaped_gae's is in the reward).
        kl_coef: weight of that term.
        kl_estimator: k1, k2 or k3 (``kl.py``; the gradient of k1 is zero in expectation).
        importance: ``[N]`` weights that correct for a rollout engine that differs; taken as constants.
        aggregate: token, sequence or constant (``aggregate.py``).
        cu_seqlens: ``[B+1]`` int32, for aggregate="sequence".
        denominator: the global count that replaces this call's own.
        backend: eager, cpu, triton, cuda, or None for the configured choice.

    Returns:
        A scalar (float32; float64 where an input is), and detached scalars. ``policy_loss``, ``value_loss``,
        ``entropy`` and ``kl`` are aggregated as the loss is and add up over microbatches with it; ``approx_kl``,
        ``clip_frac``, ``ratio_mean`` and ``value_clip_frac`` are means over this call's own valid tokens;
        ``ratio_max`` is the largest.

    Raises:
        ValueError: a wrong shape, dtype, device or option, named.
    """
    constants = {"old_values": old_values, "returns": returns, "ref_logprobs": ref_logprobs, "importance": importance}
    fixed = {"old_logprobs": old_logprobs, "advantages": advantages, **constants}
    check_tokens(logprobs, mask, **fixed, values=values, entropy=entropy)
    check_options(clip_low, clip_high, dual_clip, kl_coef, ref_logprobs, entropy_coef, entropy)
    check_aggregate(aggregate, cu_seqlens, denominator, logprobs)
    checks.one_of(kl_estimator, "kl_estimator", ESTIMATORS)
    checks.expect(values is None or returns is not None, "returns", "a tensor along with values", None)
    clips = values is not None and value_clip is not None
    checks.expect(not clips or old_values is not None, "old_values", "a tensor along with values and value_clip", None)
    mean, var = whiten or (None, None)
    checks.number(mean, "whiten")
    checks.number(var, "whiten")
    terms = Terms(
        logprobs, old_logprobs, advantages, mask, values, old_values, returns, entropy, ref_logprobs, importance,
        cu_seqlens, mean, var, denominator, "clip", "token", aggregate, kl_estimator, clip_low, clip_high, dual_clip,
        value_clip, value_coef, entropy_coef, kl_coef, shift_mean,
    )  # fmt: skip
    return OP(backend, logprobs, terms)


OP = Op("ppo_loss", eager)
