# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""How attention is cut into programs: a tile of a sequence each, and the blocks of the other side it has to visit.

N packed tokens, B sequences, P prompts, M tiles at most, D head size, W window.

Tiles are counted from a sequence's own start, and blocks from their segment's (a prompt, or the sequence itself): so
what is beside a sequence in the batch changes no bit of its results. Which tile a program has is worked out on the
device: M = ⌈N/TILE⌉ + B + 1 bounds their number without asking for it, and programs without a tile return.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import dense, launch

SIZES = (32, 64, 96, 128)
MOST_TOKENS = 2**30  # so that a position plus a window stays below 2³¹
MOST_STRIDE = 2**23  # so that a place within a tile of 128 rows does
PLAN_BLOCK = 256
# Of float32 products: exact, by multiply-adds from registers. Three tf32 products on tensor cores would be faster, but
# their halves of every operand spill at head size 128 in every tile that was tried.
PRECISION = tl.constexpr("ieee")


class Blocks(NamedTuple):
    """Rows a program owns, rows of the other side it takes at a time, and how it is compiled."""

    tile: int
    step: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """``tiles [M,2]``: sequence (B is the rows of none, −1 no tile) and first row in it; ``prompts``, ``lasts [B]``."""

    tiles: Tensor
    prompts: Tensor | None
    lasts: Tensor | None


@triton.jit
def plan_kernel(
    cu_seqlens, responses_per_prompt, tiles, prompts, lasts, N, B, P, M, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a sequence, and one for the rows of none: it counts all tiles before its own."""
    sequence = tl.program_id(0)
    before = tl.zeros([BLOCK], tl.int32)
    for start in range(0, sequence, BLOCK):
        other = start + tl.arange(0, BLOCK)
        before += _tiles(cu_seqlens, other, other < sequence, N, B, TILE)
    first = tl.sum(before)
    count = _tiles(cu_seqlens, sequence, sequence <= B, N, B, TILE)
    for start in range(0, count, BLOCK):
        own = start + tl.arange(0, BLOCK)
        place = first + own
        inside = (own < count) & (place < M)  # more than M only where offsets fall
        tl.store(tiles + 2 * place, sequence + tl.zeros([BLOCK], tl.int32), mask=inside)
        tl.store(tiles + 2 * place + 1, own * TILE, mask=inside)
    if sequence == B:
        for rest in range(first + count, M, BLOCK):
            unused = rest + tl.arange(0, BLOCK)
            tl.store(tiles + 2 * unused, tl.full([BLOCK], -1, tl.int32), mask=unused < M)
    elif prompts is not None:
        prompt, last = _group(responses_per_prompt, sequence, P, BLOCK)
        is_prompt = prompt == sequence
        shares = (prompt >= 0) & (prompt < sequence) & (sequence < last)
        tl.store(prompts + sequence, tl.where(shares, prompt, -1))
        tl.store(lasts + sequence, tl.where(is_prompt, tl.minimum(last, B), sequence + 1))


@triton.jit
def _tiles(cu_seqlens, sequence, inside, N, B, TILE: tl.constexpr):
    """How many a sequence has."""
    begin, end = bounds(cu_seqlens, tl.where(inside, sequence, 0), N, B)
    return tl.where(inside, (end - begin + TILE - 1) // TILE, 0).to(tl.int32)


@triton.jit
def _group(responses_per_prompt, sequence, P, BLOCK: tl.constexpr):
    """The last prompt at or before this sequence, −1 for none; and the sequence after its last response."""
    prompt, last, place = -1, -1, 0
    for start in range(0, P, BLOCK):
        index = start + tl.arange(0, BLOCK)
        count = tl.load(responses_per_prompt + index, mask=index < P, other=0)
        count = tl.where(index < P, tl.maximum(count, 0) + 1, 0)
        after = place + tl.cumsum(count)
        here = (index < P) & (after - count <= sequence)
        prompt = tl.maximum(prompt, tl.max(tl.where(here, after - count, -1)))
        last = tl.maximum(last, tl.max(tl.where(here, after, -1)))
        place += tl.sum(count)
    return prompt, last


@triton.jit
def bounds(cu_seqlens, sequence, N, B):
    """The rows of a sequence, or, where it is B, those after the last one; nothing outside N, whatever the offsets."""
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence).to(tl.int64), 0), N)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=0).to(tl.int64)
    return begin, tl.where(sequence < B, tl.minimum(tl.maximum(end, begin), N), N)


@triton.jit
def keys_of(segment, prompts, cu_seqlens, sequence, begin, count, N, B):
    """What a sequence sees: its prompt is segment 0, itself 1. First row, rows, those before the sequence's own."""
    if prompts is None:
        return begin, count, 0
    else:
        prompt = tl.load(prompts + sequence)
        p_begin, p_end = bounds(cu_seqlens, tl.maximum(prompt, 0), N, B)
        before = tl.where(prompt < 0, 0, p_end - p_begin).to(tl.int32)
        own = segment == 1
        return tl.where(own, begin, p_begin), tl.where(own, count, before), tl.where(own, 0, before)


@triton.jit
def load_rows(
    x, first, count, stride, BLOCK: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows first … of x ``[count,SIZE]`` as ``[BLOCK,WIDTH]``; 0 beyond. WIDEN: the interpreter cannot add bfloat16."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    place = x + tl.cast(first, tl.int64) * stride + (row * stride + column)
    if MASKED and SIZE != WIDTH:
        rows = tl.load(place, mask=(first + row < count) & (column < SIZE), other=0.0)
    elif MASKED:
        rows = tl.load(place, mask=first + row < count, other=0.0)
    elif SIZE != WIDTH:
        rows = tl.load(place, mask=column < SIZE, other=0.0)
    else:
        rows = tl.load(place)
    if WIDEN:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def narrow(x, DTYPE: tl.constexpr, WIDEN: tl.constexpr):
    """A float32 as DTYPE; rounded to nearest by hand in the interpreter, whose own cast to bfloat16 truncates."""
    if WIDEN and DTYPE.is_bf16():
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)).to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)
    return x.to(DTYPE)


@triton.jit
def operand(x, DTYPE: tl.constexpr, WIDEN: tl.constexpr):
    """A float32 as the other operand of a product is: in DTYPE, or in the interpreter in float32 with no more bits."""
    if WIDEN:
        return narrow(x, DTYPE, WIDEN).to(tl.float32)
    else:
        return x.to(DTYPE)


@triton.jit
def store_rows(
    x, rows, first, count, stride, BLOCK: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr
):
    """What ``load_rows`` reads."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    place = x + tl.cast(first, tl.int64) * stride + (row * stride + column)
    tl.store(place, narrow(rows, x.dtype.element_ty, WIDEN), mask=(first + row < count) & (column < SIZE))


@triton.jit
def seen(distance, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether a query sees a key, from its position minus the key's."""
    if CAUSAL and WINDOWED:
        return (distance >= 0) & (distance < window)
    elif CAUSAL:
        return distance >= 0
    elif WINDOWED:
        return (distance < window) & (distance > -window)
    else:
        return distance == distance


@triton.jit
def keys_seen(first, last, count, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK: tl.constexpr):
    """The keys of a segment of ``count`` that queries at first … last see, positions counted from the segment's start.

    Gives a, b, c: blocks in [a,b) need no mask, those in [b,c) do: under a window all, because a loop more for those at
    its far end takes registers that are not there.
    """
    low, bare, high = 0, count, count
    if CAUSAL:
        bare, high = tl.minimum(count, first + 1), tl.minimum(count, last + 1)
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0) // BLOCK * BLOCK
        bare = low
        high = tl.minimum(high, last + window)
    return low, bare // BLOCK * BLOCK, high


@triton.jit
def queries_seeing(first, last, count, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK: tl.constexpr):
    """From where to where a segment's queries see keys at first … last; positions count from the segment's start."""
    low, high = 0, count
    if CAUSAL:
        low = tl.maximum(first, 0) // BLOCK * BLOCK
    elif WINDOWED:
        low = tl.maximum(first - window + 1, 0) // BLOCK * BLOCK
    if WINDOWED:
        high = tl.minimum(count, last + window)
    return low, high


def plan(cu_seqlens: Tensor, responses_per_prompt: Tensor | None, tokens: int, tile: int) -> Plan:
    """Without a look at the values, which would synchronise."""
    sequences = len(cu_seqlens) - 1
    most = triton.cdiv(tokens, tile) + sequences + 1
    tiles = torch.empty(most, 2, dtype=torch.int32, device=cu_seqlens.device)
    prompts = lasts = None
    if responses_per_prompt is not None:
        prompts, lasts = tiles.new_empty(2, sequences)
    given = (dense(cu_seqlens), dense(responses_per_prompt), tiles, prompts, lasts)
    sizes = (tokens, sequences, 0 if responses_per_prompt is None else len(responses_per_prompt), most)
    launch(plan_kernel, sequences + 1, cu_seqlens, *given, *sizes, TILE=tile, BLOCK=PLAN_BLOCK, num_warps=2)
    return Plan(tiles, prompts, lasts)


def strided(x: Tensor) -> Tensor:
    """As the kernels take it: dense in the last dimension, tokens and heads wherever they are."""
    return x if x.stride(2) == 1 and x.stride(0) < MOST_STRIDE else x.contiguous()


def options(q: Tensor, causal: bool, window: int | None) -> dict[str, object]:
    """What all kernels are specialised on."""
    size = q.shape[2]
    return {"CAUSAL": causal, "WINDOWED": window is not None, "SIZE": size, "WIDTH": triton.next_power_of_2(size)}


def bounded(window: int | None) -> int:
    """0 for none; one wider than any sequence is as good as the widest."""
    return min(window or 0, MOST_TOKENS)
