"""What a response is worth beside others: the estimators of advantages that need no critic.

N packed tokens, B responses in groups of G neighbours to the same prompt.
"""

import torch
from torch import Tensor

from . import kernels
from .experience import Experience
from .kernels.kl import kl_estimate


def group_advantages(scores: Tensor, group: int, *, scale_by_std: bool = True) -> Tensor:
    """``[B]`` scores less their group's mean, over its (population) std; 0 where all of a group are alike.

    Shao et al. (2024), arXiv:2402.03300, §4.1.2; without the division: Dr. GRPO, arXiv:2503.20783.
    """
    centred = centre(scores, group)
    if scale_by_std:
        centred = centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-4)
    return centred.flatten()


def flat_groups(scores: Tensor, group: int) -> Tensor:
    """``[B/G]`` bool, the groups whose scores are all alike: nothing in them is better than the rest."""
    groups = scores.view(-1, group)
    return groups.amax(1) == groups.amin(1)


def leave_one_out(scores: Tensor, group: int) -> Tensor:
    """``[B]`` scores less the mean of the group's others; 0 in a group of one.

    Kool et al. (2019); Ahmadian et al. (2024), arXiv:2402.14740, eq. 8.
    """
    return (centre(scores, group) * (group / max(group - 1, 1))).flatten()


def centre(scores: Tensor, group: int) -> Tensor:
    """``[B/G, G]`` scores less their group's mean: exactly 0 where all are alike, which rounding is not."""
    groups = scores.view(-1, group)
    shifted = groups - groups[:, :1]
    return shifted - shifted.mean(1, keepdim=True)


def step_advantages(old: Experience, group: int, *, scale_by_std: bool = True) -> Tensor:
    """``[N]`` process supervision: rewards of steps, compared with all of their group's, summed from a token on.

    Shao et al. (2024), arXiv:2402.03300, §4.1.3.
    """
    assert old.rewards is not None and old.steps is not None
    step = old.steps.nonzero()[:, 0]
    groups = old.packed.sequence[step] // group
    rewards = old.rewards[step].double()
    sums, counts = rewards.new_zeros(len(old.scores) // group), rewards.new_zeros(len(old.scores) // group)
    counts.index_add_(0, groups, torch.ones_like(rewards)).clamp_(min=1)
    centred = rewards - (sums.index_add(0, groups, rewards) / counts)[groups]
    if scale_by_std:
        variance = sums.index_add(0, groups, centred.square()) / counts
        centred = centred / (variance.sqrt() + 1e-4)[groups]
    compared = rewards.new_zeros(len(old.mask)).index_put((step,), centred)
    before = compared.cumsum(0) - compared
    ends = compared.cumsum(0)[old.packed.cu_seqlens[1:].long() - 1]
    return ((ends[old.packed.sequence] - before) * old.mask).to(old.rewards.dtype)


def regularised(old: Experience, kl_coef: float, estimator: str = "k1") -> Tensor:
    """``[B]`` of whole responses: score and step rewards, less β times the KL of all their tokens."""
    return old.totals - kl_coef * old.per_sequence(kl_estimate(old.kl, estimator))


def rewards_to_go(old: Experience, kl_coef: float, estimator: str = "k1", gamma: float = 1.0) -> kernels.GAE:
    """``[N]`` Σ_{k≥t} γ^{k−t} (r_k − β·KL_k), the score at the last token; with their mean and variance.

    GAE with λ = 1 and no values.
    """
    return kernels.shaped_gae(
        old.scores, torch.zeros_like(old.logprobs), old.packed.cu_seqlens, mask=old.mask, rewards=old.rewards,
        logprobs=old.logprobs, ref_logprobs=old.ref_logprobs, gamma=gamma, lam=1.0, kl_coef=kl_coef,
        kl_estimator=estimator,
    )  # fmt: skip


def per_token(old: Experience, values: Tensor) -> Tensor:
    """``[N]`` the value of each token's response, ``[B]``; 0 where the policy did not choose the token."""
    return values[old.packed.sequence] * old.mask
