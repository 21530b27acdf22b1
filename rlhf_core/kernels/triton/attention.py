# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: allow-untyped-calls
"""``attention``: softmax attention inside packed sequences, a tile of queries at a time (``attention.py``).

N packed tokens, Hq query heads, D head size; m the largest score so far, l = Σ_s e^{score_s − m}.

    a block of keys: m' = max(m, scores), w_s = e^{score_s − m'}, l ← e^{m−m'}·l + Σ_s w_s, O ← e^{m−m'}·O + Σ_s w_s·v_s
    at the end:      O / l,  L = m + log l

Powers of 2 inside, natural L outside. The keys of a response are its prompt's and then its own, in one pass, so nothing
is merged. Gradients: ``attention_backward.py``. FlashAttention-2: arXiv:2307.08691
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import INTERPRETED
from .attention_backward import attention_backward_
from .attention_tiles import (
    MOST_TOKENS,
    PRECISION,
    SIZES,
    Blocks,
    bounded,
    bounds,
    keys_of,
    keys_seen,
    load_rows,
    operand,
    options,
    plan,
    seen,
    store_rows,
    strided,
)
from .launch import launch

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)

# By bytes of an element and head size: what the registers of an sm_90 hold without a spill, as test_triton_aot.py sees,
# with as many rows as an instruction of its tensor cores wants, 64 to four warps. Keys and values come through shared
# memory, up to three steps at once. float32 needs many warps, because a multiply-add holds its operands in registers.
BLOCKS = {
    (2, 32): Blocks(128, 64, 4, 3),
    (2, 64): Blocks(128, 64, 4, 3),
    (2, 96): Blocks(128, 64, 8, 3),
    (2, 128): Blocks(128, 64, 8, 3),
    (4, 32): Blocks(64, 32, 16, 1),
    (4, 64): Blocks(64, 32, 8, 1),
    (4, 96): Blocks(64, 64, 16, 2),
    (4, 128): Blocks(64, 64, 16, 2),
}


@triton.jit
def _attend(
    rows, k, v, top, total, out, first, last, ahead, count, k_row, v_row, scale, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Blocks of keys first … last of a segment; ``ahead``: the position of row 0 from the segment's start."""
    for start in range(first, last, STEP):
        keys = load_rows(k, start, count, k_row, STEP, SIZE, WIDTH, MASKED, WIDEN)
        scores = tl.dot(rows, tl.trans(keys), input_precision=PRECISION)
        if MASKED:
            key = start + tl.arange(0, STEP)
            distance = ahead + tl.arange(0, TILE)[:, None] - key[None, :]
            visible = seen(distance, window, CAUSAL, WINDOWED) & (key < count)[None, :]
            scores = tl.where(visible, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        anchor = higher
        if MASKED:  # a row may have seen nothing yet
            anchor = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores * scale - anchor[:, None])
        shrink = tl.exp2(top - anchor)
        total = total * shrink + tl.sum(weights, 1)
        values = load_rows(v, start, count, v_row, STEP, SIZE, WIDTH, MASKED, WIDEN)
        weights = operand(weights, v.dtype.element_ty, WIDEN)
        out = tl.dot(weights, values, out * shrink[:, None], input_precision=PRECISION)
        top = higher
    return top, total, out


@triton.jit
def _attend_segment(
    rows, k, v, top, total, out, ahead, count, used, k_row, v_row, scale, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """All keys of a prompt or of the sequence itself that some row of the ``used`` ones sees."""
    begin, bare, end = keys_seen(ahead, ahead + used - 1, count, window, CAUSAL, WINDOWED, STEP)
    if not WINDOWED:
        top, total, out = _attend(
            rows, k, v, top, total, out, begin, bare, ahead, count, k_row, v_row, scale, window,
            CAUSAL, WINDOWED, False, SIZE, WIDTH, TILE, STEP, WIDEN,
        )  # fmt: skip
    return _attend(
        rows, k, v, top, total, out, bare, end, ahead, count, k_row, v_row, scale, window,
        CAUSAL, WINDOWED, True, SIZE, WIDTH, TILE, STEP, WIDEN,
    )  # fmt: skip


@triton.jit
def attention_kernel(
    q, k, v, out, lse, cu_seqlens, tiles, prompts, q_row, q_head, k_row, k_head, v_row, v_head, N, B, M, scale, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of a query head. ``scale`` is log₂ e times that of the scores, and positive; ``out`` is dense."""
    program = tl.program_id(0)
    tile = M - 1 - program // HEADS  # from the end: under a causal mask those are the long ones, which must not be last
    head = (program % HEADS).to(tl.int64)
    sequence, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    if sequence < 0:
        return
    begin, end = bounds(cu_seqlens, sequence, N, B)
    count = (end - begin).to(tl.int32)
    row = first + tl.arange(0, TILE)
    first_segment: tl.constexpr = 1 if prompts is None else 0
    top = tl.full([TILE], -float("inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    found = tl.zeros([TILE, WIDTH], tl.float32)
    if sequence < B:
        q_rows = load_rows(q + begin * q_row + head * q_head, first, count, q_row, TILE, SIZE, WIDTH, True, WIDEN)
        k_begin, v_begin = k + head // GROUP * k_head, v + head // GROUP * v_head
        used = tl.minimum(TILE, count - first)
        for segment in range(first_segment, 2):
            s_begin, s_count, shift = keys_of(segment, prompts, cu_seqlens, sequence, begin, count, N, B)
            top, total, found = _attend_segment(
                q_rows, k_begin + s_begin * k_row, v_begin + s_begin * v_row, top, total, found, shift + first,
                s_count, used, k_row, v_row, scale, window, CAUSAL, WINDOWED, SIZE, WIDTH, TILE, STEP, WIDEN,
            )  # fmt: skip
    some = tl.where(total > 0, total, 1.0)  # rows of no sequence have seen nothing
    found = found / some[:, None]
    store_rows(out + (begin * HEADS + head) * SIZE, found, first, count, HEADS * SIZE, TILE, SIZE, WIDTH, WIDEN)
    tl.store(lse + head * N + begin + row, (top + tl.log2(some)) * LN_2, mask=row < count)


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, responses_per_prompt: Tensor | None, scale: float,
    causal: bool, window: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output, and L as ``[Hq,N]``, in which a program's rows lie side by side."""
    tokens, heads, size = q.shape
    out, lse = q.new_empty(q.shape), q.new_empty(heads, tokens, dtype=torch.float32)
    chosen = options(q, causal, window)
    blocks = BLOCKS[q.element_size(), size]
    tiles, prompts, _ = plan(cu_seqlens, responses_per_prompt, tokens, blocks.tile)
    given = [strided(x) for x in (q, k, v)]
    strides = [x.stride(dimension) for x in given for dimension in (0, 1)]
    sizes = (tokens, len(cu_seqlens) - 1, len(tiles), scale * LOG2_E, bounded(window))
    launch(
        attention_kernel, heads * len(tiles), q, *given, out, lse, cu_seqlens.contiguous(), tiles, prompts, *strides,
        *sizes, HEADS=heads, GROUP=heads // k.shape[1], **chosen, TILE=blocks.tile, STEP=blocks.step,
        WIDEN=INTERPRETED, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return out, lse


def _shapes(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


# By hand, as in registration.py, which has the losses' autograd and not this one.
_library = torch.library.Library("rlhf_triton", "FRAGMENT")
_library.define("attention" + torch.library.infer_schema(attention, mutates_args=()))
_library.impl("attention", attention, "CompositeExplicitAutograd")
torch.library.register_fake("rlhf_triton::attention", _shapes, lib=_library)
_op = torch.ops.rlhf_triton.attention.default


class _Attention(torch.autograd.Function):
    """The op and its gradients; L has one too."""

    @staticmethod
    def forward(ctx: Any, keyset: torch.DispatchKeySet, *arguments: Any) -> tuple[Tensor, Tensor]:
        out, lse = _below(keyset, *arguments)
        ctx.save_for_backward(*arguments[:5], out, lse)
        ctx.options = arguments[5:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, out, lse = ctx.saved_tensors
        if d_out is None:
            d_out = torch.zeros_like(out)
        gradients = attention_backward_(d_out, d_lse, out, lse, *inputs, *ctx.options)
        wanted = zip(gradients, ctx.needs_input_grad[1:], strict=False)
        return None, *(gradient if needed else None for gradient, needed in wanted), *[None] * 5


def _below(keyset: torch.DispatchKeySet, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _differentiable(keyset: torch.DispatchKeySet, *arguments: Any) -> Any:
    learnt = torch.is_grad_enabled() and any(x.requires_grad for x in arguments[:3])
    return _Attention.apply(keyset, *arguments) if learnt else _below(keyset, *arguments)


_library.impl("attention", _differentiable, "Autograd", with_keyset=True)


def run(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, causal: bool, window: int | None,
    responses_per_prompt: Tensor | None, return_lse: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What ``attention.py`` defines."""
    out, lse = _op(q, k, v, cu_seqlens, responses_per_prompt, scale, causal, window)
    return out, lse.t() if return_lse else None


def refuses(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, causal: bool, window: int | None,
    responses_per_prompt: Tensor | None, return_lse: bool,
) -> str | None:  # fmt: skip
    """Why not this call, or None."""
    if q.shape[2] not in SIZES:
        return f"takes head sizes {', '.join(map(str, SIZES))}, not {q.shape[2]}"
    if q.shape[0] >= MOST_TOKENS:
        return f"takes fewer than 2³⁰ tokens, not {q.shape[0]}"
    return None if scale > 0 else f"takes a scale > 0, not {scale}"
