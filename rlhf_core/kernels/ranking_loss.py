"""The loss of a reward model on rankings of K responses to one prompt.

N responses, P prompts; for a prompt, pairs (b, w) of its responses where b is ranked better than w.

    loss     = mean over prompts of mean over its pairs of −log σ(s_b − s_w − margin_bw) + center_coef·(s_b + s_w)²
    accuracy = the same mean of 1[s_b > s_w], ½ where equal

Tied responses make no pair; a prompt without a pair does not count; without any prompt both are 0.
Ouyang et al. (2022), arXiv:2203.02155 (all pairs of a prompt in one batch element); margin: Llama 2, arXiv:2307.09288;
centring: Eisenstein et al. (2023), arXiv:2312.09244
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dispatch import Op


def ranking_loss(
    scores: Tensor,
    cu_seqlens: Tensor,
    ranks: Tensor,
    *,
    margin: "float | Tensor | None" = None,
    center_coef: float = 0.0,
    denominator: "float | Tensor | None" = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairwise logistic loss over ranked groups; the gradient reaches ``scores``.

    Args:
        scores: ``[N]`` of all responses, group after group.
        cu_seqlens: ``[P+1]`` int32 offsets of the groups.
        ranks: ``[N]`` any number dtype; smaller is better, equal is a tie.
        margin: by how much a better score should exceed: one number for all pairs, or ``[N]`` ratings (larger is
            better) whose difference is a pair's margin.
        center_coef: keeps scores near 0 on average.
        denominator: the global number of prompts with a pair, so that losses of microbatches add up.
        backend: eager, cpu, triton, cuda, or None for the configured choice.

    Returns:
        Scalar loss (nats) and detached accuracy (0…1), float32; float64 where ``scores`` is.

    Raises:
        ValueError: a wrong shape, dtype, device or offset, named.
    """
    checks.floating(scores, "scores", (-1,))
    checks.offsets(cu_seqlens, like=scores)
    checks.shaped(ranks, "ranks", (len(scores),), scores)
    checks.expect(not ranks.is_complex(), "ranks", "numbers that have an order", ranks.dtype)
    if isinstance(margin, Tensor):
        checks.floating(margin, "margin", (len(scores),), scores)
    else:
        checks.number(margin, "margin")
    checks.number(denominator, "denominator", positive=True)
    return OP(backend, scores, scores, cu_seqlens, ranks, margin, center_coef, denominator)


def _eager(
    scores: Tensor,
    cu_seqlens: Tensor,
    ranks: Tensor,
    margin: "float | Tensor | None",
    center_coef: float,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, Tensor]:
    """The definition: groups side by side in ``[P,K]``, every pair of columns."""
    there, grid = _grid(cu_seqlens, len(scores), scores.device)
    s = torch.cat([scores.to(checks.statistics_dtype(scores)), scores.new_zeros(1)])[grid]
    rank = torch.cat([ranks, ranks.new_zeros(1)])[grid]
    pair = (rank[:, :, None] < rank[:, None, :]) & there[:, :, None] & there[:, None, :]
    pairs = pair.sum((1, 2), keepdim=True)
    prompts = (pairs > 0).sum().clamp(min=1) if denominator is None else denominator
    weight = pair.to(s.dtype) / (pairs.clamp(min=1) * prompts)

    difference = s[:, :, None] - s[:, None, :]
    gap = difference if margin is None else difference - _margin(margin, grid, s)
    terms = -F.logsigmoid(gap) + center_coef * (s[:, :, None] + s[:, None, :]).square()
    right = (difference > 0).to(s.dtype) + 0.5 * (difference == 0).to(s.dtype)
    loss = (weight * torch.where(pair, terms, 0.0)).sum()
    return loss, (weight * right).sum().detach()


def _grid(cu_seqlens: Tensor, responses: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[P,K]`` where a response is, and its index (N where none is)."""
    offsets = checks.host_offsets(cu_seqlens, responses)
    longest = max((end - begin for begin, end in pairwise(offsets)), default=0)
    index = cu_seqlens[:-1, None].long() + torch.arange(longest, device=device)
    there = index < cu_seqlens[1:, None]
    return there, torch.where(there, index, responses)


def _margin(margin: "float | Tensor", grid: Tensor, like: Tensor) -> "float | Tensor":
    if not isinstance(margin, Tensor):
        return margin
    rating = torch.cat([margin.detach().to(like.dtype), like.new_zeros(1)])[grid]
    return rating[:, :, None] - rating[:, None, :]


OP = Op("ranking_loss", _eager)
