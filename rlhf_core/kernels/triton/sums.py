# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""Sums over all programs in a fixed order, without atomics: each program writes its part, a later kernel adds them up.

P programs, C columns (one a number to be summed).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

MOST_COUNTS = tl.constexpr(512)  # parts of a count: enough to fill a GPU, few enough for every program to add up
COUNT_BLOCK = 8192  # 32 bytes a thread, so that the few programs keep enough loads in flight
COLUMN_BLOCK = 2048


@triton.jit
def number(x):
    """A scalar argument that is a float or the address of one on the device."""
    if isinstance(x, float):  # in the interpreter
        return x
    elif x.dtype.is_ptr():
        return tl.load(x).to(tl.float32)
    else:
        return x


@triton.jit
def weight(denominator, counts, programs):
    """1 / denominator, which is what ``count_kernel`` counted where that is given."""
    if counts is not None:
        part = tl.arange(0, MOST_COUNTS)
        total = tl.sum(tl.load(counts + part, mask=part < programs, other=0)).to(tl.float32)
        return 1 / tl.where(total > 0, total, 1.0)
    else:
        return 1 / number(denominator)


@triton.jit
def count_kernel(x, counts, N, BLOCK: tl.constexpr):
    """How many of x ``[N]`` are not 0: a part a program."""
    program = tl.program_id(0)
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(program.to(tl.int64) * BLOCK, N, tl.num_programs(0) * BLOCK):
        slot = start + tl.arange(0, BLOCK)
        found += (tl.load(x + slot, mask=slot < N, other=0) != 0).to(tl.int32)
    tl.store(counts + program, tl.sum(found))


def count_nonzero(x: Tensor) -> Tensor:
    """``[≤ 512]`` int32, whose sum is how many of x ``[N]`` (bool or int32) are not 0."""
    programs = min(triton.cdiv(len(x), COUNT_BLOCK), MOST_COUNTS.value)
    counts = torch.empty(programs, dtype=torch.int32, device=x.device)
    launch(count_kernel, programs, x, x, counts, len(x), BLOCK=COUNT_BLOCK, num_warps=8)
    return counts


@triton.jit
def finish_kernel(
    parts, loss, metrics, programs, COLUMNS: tl.constexpr, FIRST_MEAN: tl.constexpr, MAXIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of ``parts [C,P]``: column 0 is the loss, each other one a metric. One program a column.

    Columns from FIRST_MEAN on are divided by the sum of one more column, MAXIMUM is no sum but the largest.
    """
    column = tl.program_id(0)
    total = _column_sum(parts + column.to(tl.int64) * programs, programs, BLOCK)
    if FIRST_MEAN < COLUMNS:
        count = _column_sum(parts + tl.full([], COLUMNS, tl.int64) * programs, programs, BLOCK)
        if column == MAXIMUM:
            # ratios are positive and finite: their sum is NaN where one of them is, which the largest would hide
            total = tl.where(
                total == total, _column_max(parts + column.to(tl.int64) * programs, programs, BLOCK), total
            )
        elif column >= FIRST_MEAN:
            total = total / tl.where(count > 1, count, 1.0)
    if column == 0:
        tl.store(loss, total.to(tl.float32))
    else:
        tl.store(metrics + column - 1, total.to(tl.float32))


@triton.jit
def _column_sum(column, programs, BLOCK: tl.constexpr):
    found = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        part = start + tl.arange(0, BLOCK)
        found += tl.load(column + part, mask=part < programs, other=0.0).to(tl.float64)
    return tl.sum(found)


@triton.jit
def _column_max(column, programs, BLOCK: tl.constexpr):
    """At least 0."""
    found = tl.zeros([BLOCK], tl.float32)
    for start in range(0, programs, BLOCK):
        part = start + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(column + part, mask=part < programs, other=0.0))
    return tl.max(found).to(tl.float64)


def finish(parts: Tensor, columns: int, first_mean: int | None = None, maximum: int = -1) -> tuple[Tensor, Tensor]:
    """The loss (scalar) and the metrics ``[C−1]`` of ``parts [C or C+1,P]``; see ``finish_kernel``."""
    loss, metrics = parts.new_empty(()), parts.new_empty(columns - 1)
    options = {"COLUMNS": columns, "FIRST_MEAN": columns if first_mean is None else first_mean, "MAXIMUM": maximum}
    launch(
        finish_kernel, columns, parts, parts, loss, metrics, parts.shape[1], **options, BLOCK=COLUMN_BLOCK, num_warps=8
    )
    return loss, metrics
