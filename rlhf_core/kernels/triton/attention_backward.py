# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""Gradients of ``attention``: of queries by tiles of queries, of keys and values by tiles of keys; no sum is split.

N packed tokens, Hq query heads, Hk key heads, D head size; P = e^{scores − L}, which is computed again.

    dP = dO·vᵀ,  δ = rowsum(dO∘O) − dL,  dS = P∘(dP − δ);   dq = scale·dS·k,  dk = scale·dSᵀ·q,  dv = Pᵀ·dO

A tile of keys goes through its group's query heads, and for each through the queries of its own sequence and, where
that is a prompt, through those of its responses, in this order: no atomics, and the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .attention_tiles import (
    PRECISION,
    Blocks,
    bounded,
    bounds,
    keys_of,
    keys_seen,
    load_rows,
    operand,
    options,
    plan,
    queries_seeing,
    seen,
    store_rows,
    strided,
)
from .launch import launch
from .registration import register

LOG2_E = tl.constexpr(1.4426950408889634)

# As in attention.py; there are two tiles of scores, and for keys two accumulators: at head size 128 these alone are
# half of the registers, so the step is half as long.
QUERY_BLOCKS = {
    (2, 32): Blocks(128, 64, 4, 3),
    (2, 64): Blocks(128, 64, 8, 3),
    (2, 96): Blocks(128, 64, 8, 2),
    (2, 128): Blocks(128, 64, 8, 2),
    (4, 32): Blocks(64, 32, 8, 2),
    (4, 64): Blocks(64, 32, 8, 2),
    (4, 96): Blocks(64, 32, 16, 2),
    (4, 128): Blocks(64, 16, 8, 1),
}
KEY_BLOCKS = {
    (2, 32): Blocks(128, 64, 8, 3),
    (2, 64): Blocks(128, 64, 8, 2),
    (2, 96): Blocks(128, 32, 8, 2),
    (2, 128): Blocks(128, 32, 8, 2),
    (4, 32): Blocks(64, 32, 8, 2),
    (4, 64): Blocks(64, 32, 16, 2),
    (4, 96): Blocks(64, 16, 16, 2),
    (4, 128): Blocks(64, 16, 16, 2),
}
DELTA_TILE = 32


@triton.jit
def delta_kernel(
    d_out, out, d_lse, delta, d_row, d_head, lse_head, lse_row, N, HEADS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """δ ``[Hq,N]``, of rows of no sequence too, where nobody reads it."""
    program = tl.program_id(0)
    head, first = (program % HEADS).to(tl.int64), program // HEADS * TILE
    above = load_rows(d_out + head * d_head, first, N, d_row, TILE, SIZE, WIDTH, True, WIDEN).to(tl.float32)
    rows = load_rows(out + head * SIZE, first, N, HEADS * SIZE, TILE, SIZE, WIDTH, True, WIDEN).to(tl.float32)
    found = tl.sum(above * rows, 1)
    row = first + tl.arange(0, TILE)
    if d_lse is not None:
        place = d_lse + head * lse_head + tl.cast(row, tl.int64) * lse_row
        found -= tl.load(place, mask=row < N, other=0.0)
    tl.store(delta + head * N + row, found, mask=row < N)


@triton.jit
def _query_gradient(
    rows, above, lse, delta, k, v, found, first, last, ahead, count, k_row, v_row, scale, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Blocks of keys first … last of a segment; ``ahead``: the position of row 0 from the segment's start."""
    for start in range(first, last, STEP):
        keys = load_rows(k, start, count, k_row, STEP, SIZE, WIDTH, MASKED, WIDEN)
        values = load_rows(v, start, count, v_row, STEP, SIZE, WIDTH, MASKED, WIDEN)
        scores = tl.dot(rows, tl.trans(keys), input_precision=PRECISION)
        weights = tl.exp2(scores * scale - lse[:, None])
        if MASKED:
            key = start + tl.arange(0, STEP)
            distance = ahead + tl.arange(0, TILE)[:, None] - key[None, :]
            visible = seen(distance, window, CAUSAL, WINDOWED) & (key < count)[None, :]
            weights = tl.where(visible, weights, 0.0)
        slopes = weights * (tl.dot(above, tl.trans(values), input_precision=PRECISION) - delta[:, None])
        found = tl.dot(operand(slopes, k.dtype.element_ty, WIDEN), keys, found, input_precision=PRECISION)
    return found


@triton.jit
def _query_gradient_of_segment(
    rows, above, lse, delta, k, v, found, ahead, count, used, k_row, v_row, scale, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    begin, bare, end = keys_seen(ahead, ahead + used - 1, count, window, CAUSAL, WINDOWED, STEP)
    if not WINDOWED:
        found = _query_gradient(
            rows, above, lse, delta, k, v, found, begin, bare, ahead, count, k_row, v_row, scale, window,
            CAUSAL, WINDOWED, False, SIZE, WIDTH, TILE, STEP, WIDEN,
        )  # fmt: skip
    return _query_gradient(
        rows, above, lse, delta, k, v, found, bare, end, ahead, count, k_row, v_row, scale, window,
        CAUSAL, WINDOWED, True, SIZE, WIDTH, TILE, STEP, WIDEN,
    )  # fmt: skip


@triton.jit
def query_gradient_kernel(
    q, k, v, d_out, lse, delta, d_q, cu_seqlens, tiles, prompts,
    q_row, q_head, k_row, k_head, v_row, v_head, d_row, d_head, N, B, M, scale, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of a query head, as ``attention_kernel``."""
    program = tl.program_id(0)
    tile, head = M - 1 - program // HEADS, (program % HEADS).to(tl.int64)
    sequence, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    if sequence < 0:
        return
    begin, end = bounds(cu_seqlens, sequence, N, B)
    count = (end - begin).to(tl.int32)
    found = tl.zeros([TILE, WIDTH], tl.float32)
    if sequence < B:
        rows = load_rows(q + begin * q_row + head * q_head, first, count, q_row, TILE, SIZE, WIDTH, True, WIDEN)
        above = load_rows(d_out + begin * d_row + head * d_head, first, count, d_row, TILE, SIZE, WIDTH, True, WIDEN)
        row = first + tl.arange(0, TILE)
        statistics = head * N + begin + row
        row_lse = tl.load(lse + statistics, mask=row < count, other=0.0) * LOG2_E
        row_delta = tl.load(delta + statistics, mask=row < count, other=0.0)
        k_begin, v_begin = k + head // GROUP * k_head, v + head // GROUP * v_head
        used = tl.minimum(TILE, count - first)
        power = scale * LOG2_E
        first_segment: tl.constexpr = 1 if prompts is None else 0
        for segment in range(first_segment, 2):
            s_begin, s_count, shift = keys_of(segment, prompts, cu_seqlens, sequence, begin, count, N, B)
            found = _query_gradient_of_segment(
                rows, above, row_lse, row_delta, k_begin + s_begin * k_row, v_begin + s_begin * v_row, found,
                shift + first, s_count, used, k_row, v_row, power, window,
                CAUSAL, WINDOWED, SIZE, WIDTH, TILE, STEP, WIDEN,
            )  # fmt: skip
    d_rows = d_q + (begin * HEADS + head) * SIZE
    store_rows(d_rows, found * scale, first, count, HEADS * SIZE, TILE, SIZE, WIDTH, WIDEN)


@triton.jit
def _key_gradient(
    keys, values, q, d_out, lse, delta, found_k, found_v, behind, count, used, q_row, d_row, scale, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """All queries of a segment that see one of the ``used`` keys; ``behind``: key 0 from the segment's start.

    One loop, with a mask on every block: a loop each for those with and without takes registers that are not there.
    """
    first, last = queries_seeing(behind, behind + used - 1, count, window, CAUSAL, WINDOWED, STEP)
    for start in range(first, last, STEP):
        rows = load_rows(q, start, count, q_row, STEP, SIZE, WIDTH, True, WIDEN)
        above = load_rows(d_out, start, count, d_row, STEP, SIZE, WIDTH, True, WIDEN)
        row = start + tl.arange(0, STEP)
        # Past the end L is infinite and so P is 0: no other mask is needed there.
        row_lse = tl.load(lse + row, mask=row < count, other=float("inf")) * LOG2_E
        row_delta = tl.load(delta + row, mask=row < count, other=0.0)
        scores = tl.dot(keys, tl.trans(rows), input_precision=PRECISION)
        weights = tl.exp2(scores * scale - row_lse[None, :])
        if CAUSAL or WINDOWED:
            distance = row[None, :] - (behind + tl.arange(0, TILE)[:, None])
            weights = tl.where(seen(distance, window, CAUSAL, WINDOWED), weights, 0.0)
        found_v = tl.dot(operand(weights, d_out.dtype.element_ty, WIDEN), above, found_v, input_precision=PRECISION)
        slopes = weights * (tl.dot(values, tl.trans(above), input_precision=PRECISION) - row_delta[None, :])
        found_k = tl.dot(operand(slopes, q.dtype.element_ty, WIDEN), rows, found_k, input_precision=PRECISION)
    return found_k, found_v


@triton.jit
def key_gradient_kernel(
    q, k, v, d_out, lse, delta, d_k, d_v, cu_seqlens, tiles, lasts,
    q_row, q_head, k_row, k_head, v_row, v_head, d_row, d_head, N, B, scale, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of a key head. ``lasts [B]``: the sequence after a prompt's last response; None where none is shared."""
    program = tl.program_id(0)
    key_heads: tl.constexpr = HEADS // GROUP
    tile, key_head = program // key_heads, (program % key_heads).to(tl.int64)
    sequence, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    if sequence < 0:
        return
    begin, end = bounds(cu_seqlens, sequence, N, B)
    count = (end - begin).to(tl.int32)
    found_k, found_v = tl.zeros([TILE, WIDTH], tl.float32), tl.zeros([TILE, WIDTH], tl.float32)
    if sequence < B:
        keys = load_rows(k + begin * k_row + key_head * k_head, first, count, k_row, TILE, SIZE, WIDTH, True, WIDEN)
        values = load_rows(v + begin * v_row + key_head * v_head, first, count, v_row, TILE, SIZE, WIDTH, True, WIDEN)
        used = tl.minimum(TILE, count - first)
        power = scale * LOG2_E
        for member in range(GROUP):
            head = key_head * GROUP + member
            q_begin, d_begin, statistics = q + head * q_head, d_out + head * d_head, head * N
            last = sequence + 1
            if lasts is not None:
                last = tl.load(lasts + sequence)
            for other in range(sequence, last):
                o_begin, o_end = bounds(cu_seqlens, other, N, B)
                behind = tl.where(other == sequence, first, first - count)
                found_k, found_v = _key_gradient(
                    keys, values, q_begin + o_begin * q_row, d_begin + o_begin * d_row, lse + (statistics + o_begin),
                    delta + (statistics + o_begin), found_k, found_v, behind, (o_end - o_begin).to(tl.int32), used,
                    q_row, d_row, power, window, CAUSAL, WINDOWED, SIZE, WIDTH, TILE, STEP, WIDEN,
                )  # fmt: skip
    place = (begin * key_heads + key_head) * SIZE
    store_rows(d_k + place, found_k * scale, first, count, key_heads * SIZE, TILE, SIZE, WIDTH, WIDEN)
    store_rows(d_v + place, found_v, first, count, key_heads * SIZE, TILE, SIZE, WIDTH, WIDEN)


def attention_backward(
    d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor,
    responses_per_prompt: Tensor | None, scale: float, causal: bool, window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    (tokens, heads, size), key_heads = q.shape, k.shape[1]
    chosen = options(q, causal, window)
    width = chosen["WIDTH"]
    above, delta = strided(d_out), torch.empty_like(lse)
    launch(
        delta_kernel, heads * triton.cdiv(tokens, DELTA_TILE), q, above, out, d_lse, delta, above.stride(0),
        above.stride(1), *((0, 0) if d_lse is None else d_lse.stride()), tokens, HEADS=heads, SIZE=size, WIDTH=width,
        TILE=DELTA_TILE, WIDEN=INTERPRETED, num_warps=4,
    )  # fmt: skip
    d_q, d_k, d_v = (x.new_empty(x.shape) for x in (q, k, v))
    given, offsets = [*map(strided, (q, k, v)), above], cu_seqlens.contiguous()
    strides = [x.stride(dimension) for x in given for dimension in (0, 1)]
    chosen |= {"HEADS": heads, "GROUP": heads // key_heads, "WIDEN": INTERPRETED}
    sizes, numbers = (tokens, len(cu_seqlens) - 1), (scale, bounded(window))
    blocks = QUERY_BLOCKS[q.element_size(), size]
    queries = plan(cu_seqlens, responses_per_prompt, tokens, blocks.tile)
    launch(
        query_gradient_kernel, heads * len(queries.tiles), q, *given, lse, delta, d_q, offsets, queries.tiles,
        queries.prompts, *strides, *sizes, len(queries.tiles), *numbers, **chosen, TILE=blocks.tile, STEP=blocks.step,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    other = KEY_BLOCKS[q.element_size(), size]
    keys = queries if other.tile == blocks.tile else plan(cu_seqlens, responses_per_prompt, tokens, other.tile)
    launch(
        key_gradient_kernel, key_heads * len(keys.tiles), q, *given, lse, delta, d_k, d_v, offsets, keys.tiles,
        keys.lasts, *strides, *sizes, *numbers, **chosen, TILE=other.tile, STEP=other.step,
        num_warps=other.warps, num_stages=other.stages,
    )  # fmt: skip
    return d_q, d_k, d_v


def _shapes(
    d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object
) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


attention_backward_ = register(attention_backward, _shapes)
