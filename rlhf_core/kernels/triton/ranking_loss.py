# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""``ranking_loss``: one program a prompt, which goes over its pairs in tiles (``ranking_loss.py``).

N responses, P prompts, K responses of one prompt, S prompts that have an untied pair.

    ∂loss/∂s_i = 1/(pairs·S)·(Σ_j [i better than j]·∂term_ij/∂s_i + [j better than i]·∂term_ji/∂s_i)

A tile holds rows i and columns j; each row sums both kinds of pairs it is in, so a pair is computed twice and no
gradient is added to by two rows. Pairs are counted first: their number, and S, divide every term.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..policy_loss import Number
from . import ragged, sums, terms
from .launch import argument, constant, dense, launch, learnt, scalar
from .registration import register

# People rank 4 to 9 responses: a tile is all pairs of most prompts, and one warp needs no other to add them up.
BLOCK = 16
WARPS = 1


@triton.jit
def pairs_kernel(ranks, cu_seqlens, pairs, N, BLOCK: tl.constexpr):
    """``[P]`` the number of a prompt's untied pairs."""
    prompt = tl.program_id(0).to(tl.int64)
    begin, end = ragged.bounds(cu_seqlens, prompt, N)
    found = tl.zeros([BLOCK], tl.int32)
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        rank_i = tl.load(ranks + i, mask=i < end, other=0.0)[:, None]
        for second in range(begin, end, BLOCK):
            j = second + tl.arange(0, BLOCK)
            rank_j = tl.load(ranks + j, mask=j < end, other=0.0)[None, :]
            better = (rank_i < rank_j) & (i < end)[:, None] & (j < end)[None, :]
            found += tl.sum(better.to(tl.int32), 1)
    tl.store(pairs + prompt, tl.sum(found))


@triton.jit
def ranking_loss_kernel(
    scores, cu_seqlens, ranks, rating, denominator, counts, pairs, gradient, parts, N, count_programs, margin,
    center_coef, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a prompt's scores, and its part of loss and accuracy."""
    prompt, prompts = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    begin, end = ragged.bounds(cu_seqlens, prompt, N)
    paired = tl.load(pairs + prompt)
    weight = sums.weight(denominator, counts, count_programs) / tl.where(paired > 0, paired, 1).to(tl.float32)
    loss, right = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        here = i < end
        score_i = tl.load(scores + i, mask=here, other=0.0)[:, None]
        rank_i = tl.load(ranks + i, mask=here, other=0.0)[:, None]
        slope = tl.zeros([BLOCK], tl.float32)
        for second in range(begin, end, BLOCK):
            j = second + tl.arange(0, BLOCK)
            there = here[:, None] & (j < end)[None, :]
            score_j = tl.load(scores + j, mask=j < end, other=0.0)[None, :]
            rank_j = tl.load(ranks + j, mask=j < end, other=0.0)[None, :]
            if rating is not None:
                rating_i = tl.load(rating + i, mask=here, other=0.0)[:, None]
                gap = rating_i - tl.load(rating + j, mask=j < end, other=0.0)[None, :]
                other_gap = -gap
            else:
                gap = margin
                other_gap = margin
            better, worse = there & (rank_i < rank_j), there & (rank_i > rank_j)
            term, slope_better, _ = terms.ranking_term(score_i, score_j, gap, center_coef)
            _, _, slope_worse = terms.ranking_term(score_j, score_i, other_gap, center_coef)
            slope += tl.sum(tl.where(better, slope_better, tl.where(worse, slope_worse, 0.0)), 1)
            loss += tl.sum(tl.where(better, term, 0.0), 1)
            point = tl.where(score_i > score_j, 1.0, tl.where(score_i == score_j, 0.5, 0.0))
            right += tl.sum(tl.where(better, point, 0.0), 1)
        tl.store(gradient + i, weight * slope, mask=here)
    tl.store(parts + prompt, weight * tl.sum(loss))
    tl.store(parts + prompts + prompt, weight * tl.sum(right))


def ranking_loss(
    scores: Tensor, cu_seqlens: Tensor, ranks: Tensor, rating: Tensor | None, denominator: Tensor | None, margin: float,
    center_coef: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, accuracy, and the gradient of the scores."""
    scores, cu_seqlens, ranks, rating = scores.contiguous(), cu_seqlens.contiguous(), ranks.contiguous(), dense(rating)
    prompts, responses = len(cu_seqlens) - 1, len(scores)
    pairs = torch.empty(prompts, dtype=torch.int32, device=scores.device)
    launch(pairs_kernel, prompts, scores, ranks, cu_seqlens, pairs, responses, BLOCK=BLOCK, num_warps=WARPS)
    counts = sums.count_nonzero(pairs) if denominator is None else None
    gradient, parts = torch.empty_like(scores), scores.new_empty(2, prompts)
    tensors = (scores, cu_seqlens, ranks, rating, argument(denominator), counts, pairs, gradient, parts)
    numbers = (responses, 0 if counts is None else len(counts), margin, center_coef)
    launch(ranking_loss_kernel, prompts, scores, *tensors, *numbers, BLOCK=BLOCK, num_warps=WARPS)
    loss, metrics = sums.finish(parts, 2)
    return loss, metrics.squeeze(0), gradient


def _shapes(scores: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return scores.new_empty(()), scores.new_empty(()), scores.new_empty(scores.shape)


_call = register(ranking_loss, _shapes, learnt=(0,))


def run(
    scores: Tensor, cu_seqlens: Tensor, ranks: Tensor, margin: Number | None, center_coef: float,
    denominator: Number | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What ``ranking_loss.py`` defines."""
    rating, fixed = (constant(margin), 0.0) if isinstance(margin, Tensor) else (None, float(margin or 0.0))
    numbers = (scalar(denominator), fixed, center_coef)
    loss, accuracy = _call(learnt(scores), cu_seqlens, ranks.to(torch.float64), rating, *numbers)
    return loss, accuracy
