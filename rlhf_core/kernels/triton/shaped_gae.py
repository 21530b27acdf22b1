# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""``shaped_gae``: one program a sequence, which it walks from its end, BLOCK tokens at a time (``gae.py``).

N packed tokens, B sequences, t a token, t⁺ the next valid one. With H_t = γ(1−λ)·V_t + γλ·(A_t + V_t) the recursion
needs nothing but a token's own numbers:

    H_t = γ(1−λ)·V_t + γλ·r_t + γλ·H_{t⁺}        after the last valid token H = score + γ·bootstrap
    A_t = r_t + H_{t⁺} − V_t

Each token is the affine map H_{t⁺} → H_t, a masked one the identity; maps compose, so a block is one associative scan.
Masked tokens pass H on, so H_{t⁺} is the H of the token after t, whatever it is.
Blocks are counted from the sequence's own end, so nothing depends on what else is in the batch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gae import GAE
from . import INTERPRETED, ragged, terms
from .launch import dense, launch
from .registration import register

# Four tokens a thread: few sequences still occupy a GPU, and their last block wastes little. The interpreter scans a
# token at a time in Python.
BLOCK = 32 if INTERPRETED else 512
MERGE_BLOCK = 1024


@triton.jit
def _then(a, b, next_a, next_b):
    """One affine map after the other."""
    return next_a * a, next_a * b + next_b


@triton.jit
def _read(x, back, inside, valid):
    """0 where not valid: what is there must not leak."""
    return tl.where(valid, tl.load(x - back, mask=inside, other=0.0), 0.0)


@triton.jit
def shaped_gae_kernel(
    scores, values, cu_seqlens, mask, rewards, logprobs, ref_logprobs, bootstrap,
    advantages, returns, kl_out, counts, moments,
    N, gamma, gamma_lam, gamma_rest, kl_coef, score_clip,
    ESTIMATOR: tl.constexpr, PRICED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outputs of one sequence, and count, mean and summed squared distances from it.

    gamma_lam, gamma_rest: γλ, γ(1−λ); PRICED: kl_coef ≠ 0 (0·∞ would be NaN).
    """
    sequence = tl.program_id(0).to(tl.int64)
    begin, end = ragged.bounds(cu_seqlens, sequence, N)
    carry = tl.load(scores + sequence)
    if score_clip is not None:
        carry = terms.clamp(carry, -score_clip, score_clip)
    if bootstrap is not None:
        carry += gamma * tl.load(bootstrap + sequence)

    back = tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.float32)
    count, first, total, squares = tl.zeros([BLOCK], tl.int32), zero, zero, zero
    length = (end - begin).to(tl.int32)
    for done in range(0, length, BLOCK):
        last = end - 1 - done
        inside = back < length - done
        valid = inside
        if mask is not None:
            valid = inside & tl.load(mask + last - back, mask=inside, other=0)
        value = _read(values + last, back, inside, valid)
        reward = zero
        if rewards is not None:
            reward = _read(rewards + last, back, inside, valid)
        kl = zero
        if logprobs is not None:
            d = _read(logprobs + last, back, inside, valid) - _read(ref_logprobs + last, back, inside, valid)
            kl, _ = terms.kl_term(d, ESTIMATOR)
        if PRICED:
            reward -= kl_coef * kl

        a = tl.where(valid, gamma_lam, 1.0)
        b = tl.where(valid, gamma_rest * value + gamma_lam * reward, 0.0)
        a, b = tl.associative_scan((a, b), 0, _then)
        h = a * carry + b
        h_next = tl.where(back == 0, carry, tl.gather(h, tl.maximum(back - 1, 0), 0))
        carry = tl.sum(tl.where(back == BLOCK - 1, h, 0.0))
        advantage = tl.where(valid, reward + h_next - value, 0.0)
        tl.store(advantages + last - back, advantage, mask=inside)
        tl.store(returns + last - back, tl.where(valid, advantage + value, 0.0), mask=inside)
        tl.store(kl_out + last - back, kl, mask=inside)

        # Sums about the first number of each lane, which is one of those summed: so no more is cancelled than the
        # number of blocks, however far from 0 the advantages are.
        first = tl.where(count == 0, advantage, first)
        distance = tl.where(valid, advantage - first, 0.0)
        total += distance
        squares += distance * distance
        count += valid.to(tl.int32)
    _store_moments(counts + sequence, moments + sequence, count, first, total, squares)


@triton.jit
def _store_moments(counts, moments, count, first, total, squares):
    """Those of all lanes together, about their common mean."""
    counted = tl.sum(count)
    there = tl.where(count > 0, count, 1).to(tl.float32)
    lane_mean = tl.where(count > 0, first + total / there, 0.0)
    mean = tl.sum(lane_mean * count) / tl.where(counted > 0, counted, 1).to(tl.float32)
    apart = lane_mean - mean
    tl.store(counts, counted)
    tl.store(moments, mean)
    tl.store(moments + tl.num_programs(0), tl.sum(squares - total * total / there + apart * apart * count))


@triton.jit
def moments_kernel(counts, moments, count_out, mean_out, var_out, B, BLOCK: tl.constexpr):
    """The moments of all sequences together: about the mean, in float64, in one program."""
    counted = tl.zeros([BLOCK], tl.int64)
    summed = tl.zeros([BLOCK], tl.float64)
    for start in range(0, B, BLOCK):
        sequence = start + tl.arange(0, BLOCK)
        count = tl.load(counts + sequence, mask=sequence < B, other=0)
        counted += count
        summed += count * tl.load(moments + sequence, mask=sequence < B, other=0.0).to(tl.float64)
    count = tl.sum(counted)
    there = tl.where(count > 0, count, 1).to(tl.float64)
    mean = tl.sum(summed) / there
    squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, B, BLOCK):
        sequence = start + tl.arange(0, BLOCK)
        apart = tl.load(moments + sequence, mask=sequence < B, other=0.0).to(tl.float64) - mean
        count_here = tl.load(counts + sequence, mask=sequence < B, other=0)
        squares += tl.load(moments + B + sequence, mask=sequence < B, other=0.0) + count_here * apart * apart
    tl.store(count_out, count)
    tl.store(mean_out, mean.to(tl.float32))
    tl.store(var_out, (tl.sum(squares) / there).to(tl.float32))


def shaped_gae(
    scores: Tensor, values: Tensor, cu_seqlens: Tensor, mask: Tensor | None, rewards: Tensor | None,
    logprobs: Tensor | None, ref_logprobs: Tensor | None, bootstrap: Tensor | None, gamma: float, lam: float,
    kl_coef: float, kl_estimator: str, score_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Advantages, returns, kl ``[N]``; count, mean, var."""
    given = [dense(x) for x in (scores, values, cu_seqlens, mask, rewards, logprobs, ref_logprobs, bootstrap)]
    tokens = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(3)]
    sequences = len(scores)
    counts = torch.empty(sequences, dtype=torch.int32, device=values.device)
    moments = values.new_empty(2, sequences)
    gamma_lam = torch.tensor(gamma * lam, dtype=torch.float32).item()  # what the kernel sees, so that the two add to γ
    numbers = (len(values), gamma, gamma_lam, gamma - gamma_lam, kl_coef, score_clip)
    options = {"ESTIMATOR": kl_estimator, "PRICED": kl_coef != 0, "BLOCK": BLOCK, "num_warps": 4}
    launch(shaped_gae_kernel, sequences, values, *given, *tokens, counts, moments, *numbers, **options)
    count, mean, var = counts.new_empty((), dtype=torch.int64), values.new_empty(()), values.new_empty(())
    launch(moments_kernel, 1, values, counts, moments, count, mean, var, sequences, BLOCK=MERGE_BLOCK, num_warps=8)
    return tokens[0], tokens[1], tokens[2], count, mean, var


def _shapes(scores: Tensor, values: Tensor, *rest: object) -> tuple[Tensor, ...]:
    token = [values.new_empty(values.shape) for _ in range(3)]
    return *token, values.new_empty((), dtype=torch.int64), values.new_empty(()), values.new_empty(())


_call = register(shaped_gae, _shapes)


def run(*arguments: Any) -> GAE:
    """What ``gae.py`` defines."""
    return GAE(*_call(*arguments))
