# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""``ppo_loss`` and ``grpo_loss``: loss, metrics and gradients in one pass over the tokens (``policy_loss.py``).

N packed tokens, B sequences, P programs, w_t a token's weight (``aggregate.py``), ℓ_t a log-ratio.

    ∂loss/∂logprobs_t = w_t·(−importance_t·∂objective_t/∂ℓ_t + kl_coef·∂kl_t/∂logprobs_t)
    ∂loss/∂values_t   = w_t·value_coef·∂value_error_t/∂V_t          ∂loss/∂entropy_t = −w_t·entropy_coef
    with one ratio a sequence (GSPO), each of its n_b valid tokens has Σ_t w_t·importance_t·∂objective_t/∂ℓ / n_b

Programs take blocks of tokens in turn, or, where weights or ratios belong to sequences, a sequence each. Their parts of
the sums are added up in float64 by ``sums.finish_kernel``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..policy_loss import METRICS, Metrics, Terms
from . import ragged, sums, terms
from .launch import argument, constant, dense, launch, learnt, scalar
from .registration import register

BLOCK = 512  # four tokens a thread: one 16-byte load an input, and the sums still fit in registers
MOST_PROGRAMS = 8192  # a dozen waves of a large GPU, so that the last one costs little; few parts to add up

COLUMNS = 1 + len(METRICS)  # the loss goes first; one more column counts the valid tokens
FIRST_MEAN = 1 + METRICS.index("approx_kl")
RATIO_MAX = 1 + METRICS.index("ratio_max")


@triton.jit
def _valid(mask, token, inside):
    if mask is not None:
        return inside & tl.load(mask + token, mask=inside, other=0)
    else:
        return inside


@triton.jit
def _read(x, token, inside, valid):
    """0 where not valid: what is there must not leak."""
    return tl.where(valid, tl.load(x + token, mask=inside, other=0.0), 0.0)


@triton.jit
def _share(sequence_counts, sequence):
    """1/n_b."""
    count = tl.load(sequence_counts + sequence)
    return 1 / tl.where(count > 0, count, 1).to(tl.float32)


@triton.jit
def sequences_kernel(logprobs, old_logprobs, mask, cu_seqlens, counts, log_ratios, N, BLOCK: tl.constexpr):
    """n_b of each sequence and, where there is room for it, the mean of ℓ over its valid tokens."""
    sequence = tl.program_id(0).to(tl.int64)
    begin, end = ragged.bounds(cu_seqlens, sequence, N)
    count, total = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        inside = token < end
        valid = _valid(mask, token, inside)
        count += valid.to(tl.int32)
        if log_ratios is not None:
            total += _read(logprobs, token, inside, valid) - _read(old_logprobs, token, inside, valid)
    counted = tl.sum(count)
    tl.store(counts + sequence, counted)
    if log_ratios is not None:
        tl.store(log_ratios + sequence, tl.sum(total) / tl.where(counted > 0, counted, 1))


@triton.jit
def policy_loss_kernel(
    logprobs, old_logprobs, advantages, mask, values, old_values, returns, entropy, ref_logprobs, importance,
    cu_seqlens, sequence_counts, log_ratios, mean, var, denominator, counts,
    grad_logprobs, grad_values, grad_entropy, parts,
    N, count_programs, low, high, dual_clip, value_clip, value_coef, entropy_coef, kl_coef,
    CISPO: tl.constexpr, ESTIMATOR: tl.constexpr, SHIFT_MEAN: tl.constexpr, WEIGH_SEQUENCES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients, and this program's part of every column.

    cu_seqlens: None where programs take blocks; log_ratios: one a sequence (GSPO), or None; denominator: of the
    weights, or None where it is the sum of counts.
    """
    SHARED: tl.constexpr = log_ratios is not None and not CISPO  # one slope a sequence
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    first, last, step = program * BLOCK, N, programs * BLOCK
    if cu_seqlens is not None:
        first, last = ragged.bounds(cu_seqlens, program, N)
        step = BLOCK
    weight = sums.weight(denominator, counts, count_programs)
    if WEIGH_SEQUENCES:
        weight *= _share(sequence_counts, program)
    if mean is not None:
        centre = sums.number(mean)
        scale = tl.rsqrt(sums.number(var) + 1e-8)

    zero = tl.zeros([BLOCK], tl.float32)
    count, objectives, errors, entropies, kls = zero, zero, zero, zero, zero
    approx_kls, clips, ratios, ratio_max, value_clips, slopes = zero, zero, zero, zero, zero, zero
    for start in range(first, last, step):
        token = start + tl.arange(0, BLOCK)
        inside = token < last
        valid = _valid(mask, token, inside)
        logprob = _read(logprobs, token, inside, valid)
        advantage = _read(advantages, token, inside, valid)
        if mean is not None:
            advantage = (advantage - centre) * scale
            if not SHIFT_MEAN:
                advantage += centre
        if log_ratios is not None:
            log_ratio = zero + tl.load(log_ratios + program)
        else:
            log_ratio = logprob - _read(old_logprobs, token, inside, valid)
        objective, slope, ratio, approx_kl, clipped = terms.objective_term(
            log_ratio, advantage, logprob, low, high, dual_clip, CISPO
        )
        if importance is not None:
            correction = _read(importance, token, inside, valid)
            objective *= correction
            slope *= correction
        count += valid.to(tl.float32)
        objectives += tl.where(valid, objective, 0.0)
        approx_kls += tl.where(valid, approx_kl, 0.0)
        clips += (valid & clipped).to(tl.float32)
        ratios += tl.where(valid, ratio, 0.0)
        ratio_max = tl.maximum(ratio_max, tl.where(valid, ratio, 0.0))
        gradient = -slope
        if ref_logprobs is not None:
            d = logprob - _read(ref_logprobs, token, inside, valid)
            kl, kl_slope = terms.kl_term(d, ESTIMATOR)
            kls += tl.where(valid, kl, 0.0)
            gradient += kl_coef * kl_slope
        if SHARED:
            slopes += tl.where(valid, slope, 0.0)
        else:
            tl.store(grad_logprobs + token, tl.where(valid, weight * gradient, 0.0), mask=inside)
        if values is not None:
            value = _read(values, token, inside, valid)
            target = _read(returns, token, inside, valid)
            old = value
            if value_clip is not None:
                old = _read(old_values, token, inside, valid)
            error, error_slope, value_clipped = terms.value_term(value, old, target, value_clip)
            errors += error
            value_clips += value_clipped.to(tl.float32)
            tl.store(grad_values + token, weight * value_coef * error_slope, mask=inside)
        if entropy is not None:
            entropies += _read(entropy, token, inside, valid)
            tl.store(grad_entropy + token, tl.where(valid, -weight * entropy_coef, 0.0), mask=inside)

    if SHARED:
        common = -_share(sequence_counts, program) * tl.sum(slopes)
        for start in range(first, last, step):
            token = start + tl.arange(0, BLOCK)
            inside = token < last
            valid = _valid(mask, token, inside)
            gradient = zero + common
            if ref_logprobs is not None:
                d = _read(logprobs, token, inside, valid) - _read(ref_logprobs, token, inside, valid)
                _, kl_slope = terms.kl_term(d, ESTIMATOR)
                gradient += kl_coef * kl_slope
            tl.store(grad_logprobs + token, tl.where(valid, weight * gradient, 0.0), mask=inside)

    policy_loss, value_loss = -weight * tl.sum(objectives), weight * tl.sum(errors)
    entropy_mean, kl_mean = weight * tl.sum(entropies), weight * tl.sum(kls)
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy_mean + kl_coef * kl_mean
    part = parts + program
    tl.store(part, loss)
    tl.store(part + programs, policy_loss)
    tl.store(part + 2 * programs, value_loss)
    tl.store(part + 3 * programs, entropy_mean)
    tl.store(part + 4 * programs, kl_mean)
    tl.store(part + 5 * programs, tl.sum(approx_kls))
    tl.store(part + 6 * programs, tl.sum(clips))
    tl.store(part + 7 * programs, tl.sum(ratios))
    tl.store(part + 8 * programs, tl.max(ratio_max))
    tl.store(part + 9 * programs, tl.sum(value_clips))
    tl.store(part + 10 * programs, tl.sum(count))


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None, values: Tensor | None,
    old_values: Tensor | None, returns: Tensor | None, entropy: Tensor | None, ref_logprobs: Tensor | None,
    importance: Tensor | None, cu_seqlens: Tensor | None, mean: Tensor | None, var: Tensor | None,
    denominator: Tensor | None, objective: str, level: str, aggregate: str, kl_estimator: str, clip_low: float,
    clip_high: float, dual_clip: float | None, value_clip: float | None, value_coef: float, entropy_coef: float,
    kl_coef: float, shift_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, metrics ``[9]``, and the gradients of logprobs, values and entropy (``[0]`` where not given)."""
    tokens, by_sequence = len(logprobs), "sequence" in (level, aggregate)
    first = (logprobs, old_logprobs, advantages, mask, values, old_values, returns, entropy, ref_logprobs, importance)
    given = [dense(x) for x in first]
    gradients = [logprobs.new_empty(0 if x is None else tokens) for x in (logprobs, values, entropy)]
    offsets = dense(cu_seqlens) if by_sequence else None
    sequence_counts = log_ratios = None
    programs = min(triton.cdiv(tokens, BLOCK), MOST_PROGRAMS)
    if offsets is not None:
        programs = len(offsets) - 1
        sequence_counts = torch.empty(programs, dtype=torch.int32, device=logprobs.device)
        log_ratios = logprobs.new_empty(programs) if level == "sequence" else None
        some = (given[0], given[1], given[3], offsets, sequence_counts, log_ratios, tokens)
        launch(sequences_kernel, programs, logprobs, *some, BLOCK=BLOCK, num_warps=4)
    total, counts = argument(denominator), None
    counted = sequence_counts if aggregate == "sequence" else given[3]
    if denominator is None and counted is not None:
        counts = sums.count_nonzero(counted)
    elif denominator is None:
        total = float(max(tokens, 1))
    parts = logprobs.new_empty(COLUMNS + 1, programs)
    tensors = (*given, offsets, sequence_counts, log_ratios, argument(mean), argument(var), total, counts)
    clips = (1 - clip_low, 1 + clip_high, dual_clip, value_clip)
    launch(
        policy_loss_kernel, programs, logprobs, *tensors, *gradients, parts,
        tokens, 0 if counts is None else len(counts), *clips, value_coef, entropy_coef, kl_coef,
        CISPO=objective == "cispo", ESTIMATOR=kl_estimator, SHIFT_MEAN=shift_mean,
        WEIGH_SEQUENCES=aggregate == "sequence", BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    loss, metrics = sums.finish(parts, COLUMNS, FIRST_MEAN, RATIO_MAX)
    return loss, metrics, gradients[0], gradients[1], gradients[2]


def _shapes(logprobs: Tensor, *rest: object) -> tuple[Tensor, ...]:
    of_inputs = (logprobs, rest[3], rest[6])
    gradients = [logprobs.new_empty(0 if x is None else logprobs.shape[0]) for x in of_inputs]
    return logprobs.new_empty(()), logprobs.new_empty(len(METRICS)), *gradients


_call = register(policy_loss, _shapes, learnt=[Terms._fields.index(name) for name in ("logprobs", "values", "entropy")])
OPTIONS = Terms._fields.index("objective")


def run(x: Terms) -> tuple[Tensor, Metrics]:
    """What ``policy_loss.py`` defines."""
    loss, metrics = _call(
        learnt(x.logprobs), constant(x.old_logprobs), constant(x.advantages), x.mask, learnt(x.values),
        constant(x.old_values), constant(x.returns), learnt(x.entropy), constant(x.ref_logprobs),
        constant(x.importance), x.cu_seqlens, scalar(x.mean), scalar(x.var), scalar(x.denominator), *x[OPTIONS:],
    )  # fmt: skip
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))


def refuses(x: Terms) -> str | None:
    """The definition computes in float64 where an input is."""
    return "takes float32, not float64" if x.dtype == torch.float64 else None
