# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: allow-untyped-calls
"""``decode_attention``: one token a sequence, its keys split among programs (``decode_attention.py``).

B sequences, Hq query heads, Hk key heads, D head size, S slots of the cache, P prompts of at most L tokens, C splits.

    a split: O_c = softmax_c(scores)·v,  L_c = log₂ Σ_s 2^{score_s}          together: O = Σ_c 2^{L_c − L}·O_c

A split is a fixed number of slots, of a prompt or of a cache, and splits are merged in order: a sequence's result does
not depend on the batch. A program has all query heads of a key head. The sequences of a prompt follow each other in the
grid, so what one reads of it the next ones find in the L2 cache. Flash-decoding; arXiv:2402.05099
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .attention_tiles import MOST_STRIDE, SIZES, load_rows, narrow, operand, store_rows
from .launch import dense, launch
from .registration import register

SPLIT = 256  # slots: at one sequence of 4096 and 8 key heads there is a program for each SM; parts are 1/60 of the keys
STEP = {2: 64, 4: 16}  # by bytes of an element: multiply-adds of float32 hold their operands in registers
STAGES = 3  # 70 KiB at D 128: three programs an SM
LOG2_E = 1.4426950408889634


@triton.jit
def _part(
    q_rows, k, v, parts, statistics, first, count, k_slot, v_slot, scale, GROUP: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Slots first … first + SPLIT of ``count``; nothing is written where there are none."""
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    last = tl.minimum(first + SPLIT, count)
    for start in range(first, last, STEP):
        keys = load_rows(k, start, last, k_slot, STEP, SIZE, WIDTH, True, WIDEN)
        values = load_rows(v, start, last, v_slot, STEP, SIZE, WIDTH, True, WIDEN)
        scores = tl.dot(q_rows, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((start + tl.arange(0, STEP) < last)[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(operand(weights, v.dtype.element_ty, WIDEN), values, out * shrink[:, None], input_precision="ieee")
        top = higher
    if first < last:
        row = tl.arange(0, ROWS)
        store_rows(parts, out / total[:, None], 0, GROUP, SIZE, ROWS, SIZE, WIDTH, WIDEN)
        tl.store(statistics + row, top + tl.log2(total), mask=row < GROUP)


@triton.jit
def _filled(lengths, sequence, slots):
    return tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), slots)


@triton.jit
def _prompt(prefix_of, prefix_lengths, sequence, P, L):
    """A sequence's prompt and its length, which is 0 where it has none."""
    prompt = tl.minimum(tl.load(prefix_of + sequence), P - 1)
    count = tl.where(prompt < 0, 0, L)
    if prefix_lengths is not None:
        count = tl.minimum(count, tl.maximum(tl.load(prefix_lengths + prompt, mask=prompt >= 0, other=0), 0))
    return tl.maximum(prompt, 0).to(tl.int64), count


@triton.jit
def split_kernel(
    q, k_cache, v_cache, prefix_k, prefix_v, lengths, prefix_of, prefix_lengths, parts, statistics,
    q_sequence, q_head, k_sequence, k_slot, k_head, v_sequence, v_slot, v_head,
    pk_prompt, pk_slot, pk_head, pv_prompt, pv_slot, pv_head, B, S, P, L, prefix_splits, scale,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    SPLIT: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A split of a key head of a sequence: those of the prompt come first. ``scale`` is log₂ e times the scores'."""
    program = tl.program_id(0)
    sequence, rest = (program % B).to(tl.int64), program // B
    head, split = (rest % KEY_HEADS).to(tl.int64), rest // KEY_HEADS
    row = ((tl.cast(split, tl.int64) * B + sequence) * KEY_HEADS + head) * GROUP
    part, statistic = parts + row * SIZE, statistics + row
    q_begin = q + sequence * q_sequence + head * GROUP * q_head
    q_rows = load_rows(q_begin, 0, GROUP, q_head, ROWS, SIZE, WIDTH, True, WIDEN)
    k = k_cache + sequence * k_sequence + head * k_head
    v = v_cache + sequence * v_sequence + head * v_head
    first, count = (split - prefix_splits) * SPLIT, _filled(lengths, sequence, S)
    if prefix_k is not None:  # chosen by a select: a loop each would have its own shared memory
        prompt, longest = _prompt(prefix_of, prefix_lengths, sequence, P, L)
        own = split >= prefix_splits
        k = tl.where(own, k, prefix_k + prompt * pk_prompt + head * pk_head)
        v = tl.where(own, v, prefix_v + prompt * pv_prompt + head * pv_head)
        first, count = tl.where(own, first, split * SPLIT), tl.where(own, count, longest)
        k_slot, v_slot = tl.where(own, k_slot, pk_slot), tl.where(own, v_slot, pv_slot)
    _part(
        q_rows, k, v, part, statistic, first, count, k_slot, v_slot, scale,
        GROUP, ROWS, SIZE, WIDTH, SPLIT, STEP, WIDEN,
    )  # fmt: skip


@triton.jit
def _merge(out, top, total, parts, statistics, first, last, row, rows, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Parts first … last of one row of ``rows``."""
    column = tl.arange(0, WIDTH)
    for split in range(first, last):
        place = tl.cast(split, tl.int64) * rows + row
        own = tl.load(statistics + place)
        higher = tl.maximum(top, own)
        shrink, weight = tl.exp2(top - higher), tl.exp2(own - higher)
        part = tl.load(parts + place * SIZE + column, mask=column < SIZE, other=0.0)
        out = out * shrink + weight * part
        total = total * shrink + weight
        top = higher
    return out, top, total


@triton.jit
def merge_kernel(
    parts, statistics, out, lengths, prefix_of, prefix_lengths, B, S, P, L, prefix_splits,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A query head of a sequence; 0 where it sees nothing."""
    row = tl.program_id(0).to(tl.int64)
    sequence, rows = row // HEADS, tl.cast(B, tl.int64) * HEADS
    top, total = tl.full([], -float("inf"), tl.float32), tl.full([], 0, tl.float32)
    found = tl.zeros([WIDTH], tl.float32)
    if prefix_of is not None:
        _, count = _prompt(prefix_of, prefix_lengths, sequence, P, L)
        last = (count + SPLIT - 1) // SPLIT
        found, top, total = _merge(found, top, total, parts, statistics, 0, last, row, rows, SIZE, WIDTH)
    last = prefix_splits + (_filled(lengths, sequence, S) + SPLIT - 1) // SPLIT
    found, top, total = _merge(found, top, total, parts, statistics, prefix_splits, last, row, rows, SIZE, WIDTH)
    column = tl.arange(0, WIDTH)
    found = found / tl.where(total > 0, total, 1.0)
    tl.store(out + row * SIZE + column, narrow(found, out.dtype.element_ty, WIDEN), mask=column < SIZE)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, prefix_k: Tensor | None, prefix_v: Tensor | None,
    prefix_of: Tensor | None, prefix_lengths: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    """As ``decode_attention.py`` defines."""
    (batch, heads, size), (slots, key_heads) = q.shape, k_cache.shape[1:3]
    prompts, longest = (0, 0) if prefix_k is None else prefix_k.shape[:2]
    if prompts * longest == 0:
        prefix_k = prefix_v = prefix_of = prefix_lengths = None
    given = [_strided(x) for x in (q, k_cache, v_cache, prefix_k, prefix_v)]
    strides = [x.stride()[:-1] if x is not None else (0, 0, 0) for x in given]
    places = [dense(x) for x in (lengths, prefix_of, prefix_lengths)]
    prefix_splits = triton.cdiv(longest, SPLIT) if prefix_k is not None else 0
    splits, group = prefix_splits + triton.cdiv(slots, SPLIT), heads // key_heads
    parts = q.new_empty(splits, batch, heads, size, dtype=torch.float32)
    statistics = q.new_empty(splits, batch, heads, dtype=torch.float32)
    out = q.new_empty(q.shape)
    sizes, width = (batch, slots, prompts, longest, prefix_splits), triton.next_power_of_2(size)
    launch(
        split_kernel, splits * key_heads * batch, q, *given, *places, parts, statistics,
        *(stride for of_one in strides for stride in of_one), *sizes, scale * LOG2_E, KEY_HEADS=key_heads, GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)), SIZE=size, WIDTH=width, SPLIT=SPLIT, STEP=STEP[q.element_size()],
        WIDEN=INTERPRETED, num_warps=4, num_stages=STAGES,
    )  # fmt: skip
    launch(
        merge_kernel, batch * heads, q, parts, statistics, out, *places, *sizes, HEADS=heads, SIZE=size, WIDTH=width,
        SPLIT=SPLIT, WIDEN=INTERPRETED, num_warps=1,
    )  # fmt: skip
    return out


def _strided(x: Tensor | None) -> Tensor | None:
    """Dense in the last dimension, and near enough in the second for 32-bit places within a block."""
    if x is None or (x.stride(-1) == 1 and x.stride(1) < MOST_STRIDE):
        return x
    return x.contiguous()


def _shapes(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


register(decode_attention, _shapes)
_op = torch.ops.rlhf_triton.decode_attention.default


def run(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, prefix_k: Tensor | None,
    prefix_v: Tensor | None, prefix_of: Tensor | None, prefix_lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """What ``decode_attention.py`` defines."""
    found: Tensor = _op(q, k_cache, v_cache, lengths, prefix_k, prefix_v, prefix_of, prefix_lengths, scale)
    return found


def refuses(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, prefix_k: Tensor | None,
    prefix_v: Tensor | None, prefix_of: Tensor | None, prefix_lengths: Tensor | None,
) -> str | None:  # fmt: skip
    """Why not this call, or None."""
    if q.shape[2] not in SIZES:
        return f"takes head sizes {', '.join(map(str, SIZES))}, not {q.shape[2]}"
    return None
