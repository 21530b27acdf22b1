"""Advantages and returns under a reward shaped by the KL to a reference policy.

N packed tokens, B sequences, t a token, t⁺ the next valid token of its sequence.

    r_t = rewards_t − kl_coef·kl_t  (+ clip(score, ±score_clip) at the sequence's last valid token)
    δ_t = r_t + γ·V_{t⁺} − V_t          V_{t⁺} = bootstrap (or 0) after the last valid token
    A_t = δ_t + γλ·A_{t⁺}               A_{t⁺} = 0 there
    returns_t = A_t + V_t

Masked tokens (what the policy did not choose: prompts, tool output) are skipped: V and A are carried across them.
They get 0 everywhere, and what they hold, NaN included, is never read into anything.

Schulman et al., "High-dimensional continuous control using generalized advantage estimation" (2016), arXiv:1506.02438
"""

from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from . import checks
from .dispatch import Op
from .kl import ESTIMATORS, kl_estimate


class GAE(NamedTuple):
    """What ``shaped_gae`` returns; no gradient flows through any of it.

    Attributes:
        advantages: ``[N]`` raw (not whitened); 0 at masked tokens.
        returns: ``[N]`` advantages + values; 0 at masked tokens.
        kl: ``[N]`` the estimate of each token in nats, not multiplied by ``kl_coef``; 0 where masked or not given.
        count: int64 scalar, the number of valid tokens.
        mean: scalar, the mean of the advantages of valid tokens (0 without any).
        var: scalar, their population variance (÷ count; 0 without any).
    """

    advantages: Tensor
    returns: Tensor
    kl: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count: the name is what its users say
    mean: Tensor
    var: Tensor


def shaped_gae(
    scores: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    *,
    mask: Tensor | None = None,
    rewards: Tensor | None = None,
    logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
    kl_coef: float = 0.0,
    kl_estimator: str = "k1",
    score_clip: float | None = None,
    bootstrap: Tensor | None = None,
    backend: str | None = None,
) -> GAE:
    """Generalised advantage estimation of packed sequences, reward shaping and statistics in one pass.

    Args:
        scores: ``[B]`` of the whole response; lands on the last valid token, nowhere if a sequence has none.
        values: ``[N]`` V of the state in which each token was chosen.
        cu_seqlens: ``[B+1]`` int32 offsets.
        mask: ``[N]`` bool, True where the policy chose the token; None means everywhere.
        rewards: ``[N]`` a token's own reward.
        logprobs: ``[N]`` of the policy, nats; comes together with ``ref_logprobs``.
        ref_logprobs: ``[N]`` of the reference policy, nats.
        gamma: discount γ.
        lam: λ of the exponential average.
        kl_coef: how much a nat of KL costs.
        kl_estimator: k1, k2 or k3 (``kl.py``).
        score_clip: scores are clipped to ±this.
        bootstrap: ``[B]`` value of the state after the last token of a truncated sequence; 0 for one that ended.
        backend: eager, cpu, triton, cuda, or None for the configured choice.

    Inputs of any floating dtype; float32 inside and out, float64 where an input is float64.

    Raises:
        ValueError: a wrong shape, dtype, device or offset, named.
    """
    checks.floating(values, "values", (-1,))
    tokens, sequences = len(values), checks.offsets(cu_seqlens, like=values)
    checks.floating(scores, "scores", (sequences,), values)
    checks.floating(bootstrap, "bootstrap", (sequences,), values)
    checks.floating(rewards, "rewards", (tokens,), values)
    checks.floating(logprobs, "logprobs", (tokens,), values)
    checks.floating(ref_logprobs, "ref_logprobs", (tokens,), values)
    checks.boolean(mask, "mask", (tokens,), values)
    together = (logprobs is None) == (ref_logprobs is None)
    checks.expect(together, "ref_logprobs", "logprobs and ref_logprobs together", "one of them")
    checks.expect(kl_coef == 0 or logprobs is not None, "kl_coef", "0 without logprobs", kl_coef)
    checks.one_of(kl_estimator, "kl_estimator", ESTIMATORS)
    checks.expect(score_clip is None or score_clip >= 0, "score_clip", "a number ≥ 0", score_clip)
    dtype = checks.statistics_dtype(scores, values, rewards, logprobs, ref_logprobs, bootstrap)

    rewards, logprobs, ref_logprobs = _plain(rewards, dtype), _plain(logprobs, dtype), _plain(ref_logprobs, dtype)
    return OP(
        backend, values, _plain(scores, dtype), _plain(values, dtype), cu_seqlens, mask, rewards, logprobs,
        ref_logprobs, _plain(bootstrap, dtype), gamma, lam, kl_coef, kl_estimator, score_clip,
    )  # fmt: skip


M = TypeVar("M", Tensor, Tensor | None)


def _plain(tensor: M, dtype: torch.dtype) -> M:
    """Without gradient, in the dtype of statistics; as a rule it is both already."""
    if tensor is None:
        return tensor
    tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
    return tensor.detach() if tensor.requires_grad else tensor


def _eager(
    scores: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    rewards: Tensor | None,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    bootstrap: Tensor | None,
    gamma: float,
    lam: float,
    kl_coef: float,
    kl_estimator: str,
    score_clip: float | None,
) -> GAE:
    """The definition: all sequences at once, a step of the loop a token."""
    offsets = checks.host_offsets(cu_seqlens, len(values))
    valid = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    zero = values.new_zeros(())
    kl = torch.zeros_like(values)
    if logprobs is not None and ref_logprobs is not None:
        kl = torch.where(valid, kl_estimate(logprobs - ref_logprobs, kl_estimator), zero)
    reward = torch.zeros_like(values) if rewards is None else torch.where(valid, rewards, zero)
    if kl_coef != 0:
        reward = reward - kl_coef * kl
    values = torch.where(valid, values, zero)
    score = scores if score_clip is None else scores.clamp(-score_clip, score_clip)
    next_value = torch.zeros_like(scores) if bootstrap is None else bootstrap
    advantages = _scan(reward, values, valid, score, next_value, offsets, gamma, gamma * lam)
    returns = torch.where(valid, advantages + values, zero)
    count = valid.sum()
    some = count.clamp(min=1)
    mean = advantages.sum() / some
    var = torch.where(valid, advantages - mean, zero).square().sum() / some
    return GAE(advantages, returns, kl, count, mean, var)


def _scan(
    reward: Tensor, values: Tensor, valid: Tensor, score: Tensor, next_value: Tensor, offsets: list[int],
    gamma: float, gamma_lam: float,
) -> Tensor:  # fmt: skip
    """``[N]`` advantages; reward and values are 0 where not valid."""
    begins, ends = torch.tensor([offsets[:-1], offsets[1:]], device=values.device)
    longest = max((end - begin for begin, end in pairwise(offsets)), default=0)
    advantages = torch.zeros_like(values)
    advantage = torch.zeros_like(score)
    for step in range(longest):  # token end−1−step of every sequence that is so long
        row = (ends - 1 - step >= begins).nonzero().squeeze(1)
        token = ends[row] - 1 - step
        here, value = valid[token], values[token]
        delta = reward[token] + score[row] + gamma * next_value[row] - value
        found = delta + gamma_lam * advantage[row]
        advantage[row] = torch.where(here, found, advantage[row])
        next_value = next_value.index_copy(0, row, torch.where(here, value, next_value[row]))
        score = score.index_copy(0, row, torch.where(here, torch.zeros_like(value), score[row]))
        advantages[token] = torch.where(here, found, torch.zeros_like(found))
    return advantages


OP = Op("shaped_gae", _eager)
