# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""``preference_loss``: loss, metrics and gradients of pairs in one pass (``preference_loss.py``).

B pairs, P programs; c, r the log-ratios of the chosen and the rejected response, divided by their lengths where given.

    ∂loss/∂chosen_b = ∂term_b/∂c_b / (max(length_b, 1)·denominator)          and the same of rejected

kto's z, the batch means of c and r, come from a pass before.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import statistics_dtype
from ..policy_loss import Metrics, Number
from ..preference_loss import METRICS
from . import sums, terms
from .launch import argument, constant, dense, launch, learnt, scalar
from .registration import register

BLOCK = 256  # two pairs a thread: batches are small
MOST_PROGRAMS = 512  # few enough for every program to add up the parts of kto's means


@triton.jit
def _ratios(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, pair, inside):
    """C and r, and what their slopes are multiplied by."""
    c, share_c = _ratio(chosen, ref_chosen, chosen_lengths, pair, inside)
    r, share_r = _ratio(rejected, ref_rejected, rejected_lengths, pair, inside)
    return c, r, share_c, share_r


@triton.jit
def _ratio(own, reference, lengths, pair, inside):
    ratio = tl.load(own + pair, mask=inside, other=0.0)
    if reference is not None:
        ratio -= tl.load(reference + pair, mask=inside, other=0.0)
    if lengths is not None:
        length = tl.load(lengths + pair, mask=inside, other=1.0)
        length = tl.where(length < 1, 1.0, length)
        return ratio / length, 1 / length
    else:
        return ratio, tl.full(ratio.shape, 1.0, tl.float32)


@triton.jit
def means_kernel(chosen, rejected, ref_chosen, ref_rejected, parts, B, BLOCK: tl.constexpr):
    """``[2,P]`` sums of c and of r: a part a program."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    sum_c, sum_r = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(program * BLOCK, B, programs * BLOCK):
        pair = start + tl.arange(0, BLOCK)
        c, r, _, _ = _ratios(chosen, rejected, ref_chosen, ref_rejected, None, None, pair, pair < B)
        sum_c += c
        sum_r += r
    tl.store(parts + program, tl.sum(sum_c))
    tl.store(parts + programs + program, tl.sum(sum_r))


@triton.jit
def _mean(parts, programs, B, MOST_PROGRAMS: tl.constexpr):
    """max(0, mean)."""
    part = tl.arange(0, MOST_PROGRAMS)
    mean = tl.sum(tl.load(parts + part, mask=part < programs, other=0.0)) / B
    return tl.where(mean < 0, 0.0, mean)


@triton.jit
def preference_loss_kernel(
    chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, denominator, means,
    grad_chosen, grad_rejected, parts,
    B, beta, smoothing, margin, KIND: tl.constexpr, BLOCK: tl.constexpr, MOST_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Gradients, and this program's part of loss and metrics."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    weight = 1 / sums.number(denominator)
    z_c, z_r = 0.0, 0.0
    if means is not None:
        z_c = _mean(means, programs, B, MOST_PROGRAMS)
        z_r = _mean(means + programs, programs, B, MOST_PROGRAMS)
    zero = tl.zeros([BLOCK], tl.float32)
    losses, rewards_c, rewards_r, margins, right = zero, zero, zero, zero, zero
    for start in range(program * BLOCK, B, programs * BLOCK):
        pair = start + tl.arange(0, BLOCK)
        inside = pair < B
        c, r, share_c, share_r = _ratios(
            chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, pair, inside
        )
        term, slope_c, slope_r = terms.preference_term(c, r, beta, smoothing, margin, z_c, z_r, KIND)
        tl.store(grad_chosen + pair, weight * slope_c * share_c, mask=inside)
        tl.store(grad_rejected + pair, weight * slope_r * share_r, mask=inside)
        losses += tl.where(inside, term, 0.0)
        rewards_c += beta * c
        rewards_r += beta * r
        margins += beta * (c - r)
        point = tl.where(c > r, 1.0, tl.where(c == r, 0.5, 0.0))
        right += tl.where(inside, point, 0.0)
    part = parts + program
    tl.store(part, weight * tl.sum(losses))
    tl.store(part + programs, weight * tl.sum(rewards_c))
    tl.store(part + 2 * programs, weight * tl.sum(rewards_r))
    tl.store(part + 3 * programs, weight * tl.sum(margins))
    tl.store(part + 4 * programs, weight * tl.sum(right))


def preference_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | None, ref_rejected: Tensor | None,
    chosen_lengths: Tensor | None, rejected_lengths: Tensor | None, denominator: Tensor | None, beta: float, kind: str,
    label_smoothing: float, margin: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, metrics ``[4]``, and the gradients of chosen and rejected."""
    pairs = len(chosen)
    ratios = [dense(x) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    lengths = (dense(chosen_lengths), dense(rejected_lengths))
    programs = min(triton.cdiv(pairs, BLOCK), MOST_PROGRAMS)
    means = None
    if kind == "kto":
        means = chosen.new_empty(2, programs)
        launch(means_kernel, programs, chosen, *ratios, means, pairs, BLOCK=BLOCK, num_warps=4)
    gradients, parts = [chosen.new_empty(pairs) for _ in range(2)], chosen.new_empty(1 + len(METRICS), programs)
    total = float(max(pairs, 1)) if denominator is None else argument(denominator)
    tensors = (*ratios, *lengths, total, means, *gradients, parts)
    options = {"KIND": kind, "BLOCK": BLOCK, "MOST_PROGRAMS": MOST_PROGRAMS, "num_warps": 4}
    launch(preference_loss_kernel, programs, chosen, *tensors, pairs, beta, label_smoothing, margin, **options)
    loss, metrics = sums.finish(parts, 1 + len(METRICS))
    return loss, metrics, gradients[0], gradients[1]


def _shapes(chosen: Tensor, *rest: object) -> tuple[Tensor, ...]:
    gradients = [chosen.new_empty(chosen.shape) for _ in range(2)]
    return chosen.new_empty(()), chosen.new_empty(len(METRICS)), *gradients


_call = register(preference_loss, _shapes, learnt=(0, 1))


def run(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | None, ref_rejected: Tensor | None, beta: float, kind: str,
    label_smoothing: float, margin: float, chosen_lengths: Tensor | None, rejected_lengths: Tensor | None,
    denominator: Number | None,
) -> tuple[Tensor, Metrics]:  # fmt: skip
    """What ``preference_loss.py`` defines."""
    fixed = [constant(x) for x in (ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)]
    numbers = (scalar(denominator), beta, kind, label_smoothing, margin)
    loss, metrics = _call(learnt(chosen), learnt(rejected), *fixed, *numbers)
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))


def refuses(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | None, ref_rejected: Tensor | None, *_: object
) -> str | None:
    """The definition computes in float64 where an input is."""
    wide = statistics_dtype(chosen, rejected, ref_chosen, ref_rejected) == torch.float64
    return "takes float32, not float64" if wide else None
