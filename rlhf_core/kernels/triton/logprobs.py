# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""``logprobs_from_logits``, and the row pass that every op of a head shares: one program a row (``logprobs.py``).

N packed tokens, V vocabulary. With z = (logits + bias)/temperature, top = max_v z, S = Σ_v e^{z_v−top}, p = softmax(z):

    forward    logprob = z_target − top − log S         entropy = H = log S − Σ_v e^{z_v−top}·(z_v − top)/S
    backward   dz_v = g·([v = target] − p_v) − h·p_v·(log p_v + H),     g, h from above;  d_logits = dz/temperature

Everything is float32 and about the row's own maximum, so that nothing large cancels; top and log S are kept apart for
the same reason. A row is summed in one order whatever is beside it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .launch import launch

WARPS = 8
# Maxima and sums are a lane's own until the end, and rescaled once for STEPS logits: no barriers, and few exponentials
# more than one a logit, of which a GPU has few to spare at the speed of its memory.
STEPS = 4


@triton.jit
def _scaled(logits, bias, column, inside, inverse_temperature):
    """Z, −∞ outside."""
    z = tl.load(logits + column, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + column, mask=inside, other=0.0)
    return tl.where(inside, z * inverse_temperature, float("-inf"))


@triton.jit
def _finite(top):
    """What is subtracted from z: −∞ − −∞ would be NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def rows_kernel(
    logits, bias, targets, logprobs, top_out, log_sum_out, entropy, V, stride, inverse_temperature,
    STEPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Log-prob, top, log S and, where there is room for it, entropy of a row; of one without a target nothing is read.

    Labels are checked where that costs no synchronisation; here, one outside the vocabulary is like none.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    kept = (target >= 0) & (target < V)
    logits += row * stride
    top = tl.full([LANES], float("-inf"), tl.float32)
    total, moment = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)
    step = tl.arange(0, STEPS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    for start in range(0, tl.where(kept, V, 0), STEPS * LANES):
        column = start + step
        z = _scaled(logits, bias, column, column < V, inverse_temperature)
        higher = tl.maximum(top, tl.max(z, 0))
        base = _finite(higher)
        below = z - base[None, :]
        power = tl.exp(below)
        shrink = tl.exp(top - base)
        if entropy is not None:
            drop = tl.where(top == float("-inf"), 0.0, top - base)
            terms = tl.where(z == float("-inf"), 0.0, power * below)  # 0·log 0 = 0
            moment = (moment + total * drop) * shrink + tl.sum(terms, 0)
        total = total * shrink + tl.sum(power, 0)
        top = higher

    highest = tl.max(top, 0)
    base = _finite(highest)
    shrink = tl.exp(top - base)
    whole = tl.sum(total * shrink, 0)
    log_sum = tl.log(whole)
    one = tl.where(kept, target, 0)
    found = _scaled(logits, bias, one, kept, inverse_temperature)
    tl.store(logprobs + row, tl.where(kept, found - highest - log_sum, 0.0))
    tl.store(top_out + row, highest)
    tl.store(log_sum_out + row, log_sum)
    if entropy is not None:
        drop = tl.where(top == float("-inf"), 0.0, top - base)
        mean = tl.sum((moment + total * drop) * shrink, 0) / whole
        tl.store(entropy + row, tl.where(kept, log_sum - mean, 0.0))


@triton.jit
def slopes_kernel(
    logits, bias, targets, top_in, log_sum_in, entropy, d_logprobs, d_entropy, slopes, V, stride, slopes_stride,
    inverse_temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_logits of a row, 0 without a target; may be written over the logits, where the dtype is the same."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    kept = (target >= 0) & (target < V)
    logits += row * stride
    slopes += row * slopes_stride
    top, log_sum = tl.load(top_in + row), tl.load(log_sum_in + row)
    g = tl.load(d_logprobs + row)
    h, spread = 0.0, 0.0
    read = tl.where(kept, V, 0)
    if d_entropy is not None:
        h, spread = tl.load(d_entropy + row), tl.load(entropy + row)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = _scaled(logits, bias, column, column < read, inverse_temperature)
        log_p = z - top - log_sum
        p = tl.exp(log_p)
        slope = tl.where(column == target, g - g * p, -g * p)
        if d_entropy is not None:
            slope -= h * tl.where(z == float("-inf"), 0.0, p * (log_p + spread))
        slope = tl.where(kept, slope * inverse_temperature, 0.0)
        tl.store(slopes + column, slope.to(slopes.dtype.element_ty), mask=column < V)


def rows(
    logits: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, logprobs: Tensor, top: Tensor,
    log_sum: Tensor, entropy: Tensor | None,
) -> None:  # fmt: skip
    """Run ``rows_kernel`` on logits ``[N,V]`` whose columns are dense."""
    sizes = (logits.shape[1], logits.stride(0), 1 / temperature)
    lanes = WARPS * 32 * (16 // logits.element_size())  # a load of 16 bytes a thread
    outputs = (logprobs, top, log_sum, entropy)
    options = {"STEPS": STEPS, "LANES": lanes, "num_warps": WARPS}
    launch(rows_kernel, len(logits), logits, logits, bias, targets, *outputs, *sizes, **options)


def slopes(
    logits: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, top: Tensor, log_sum: Tensor,
    entropy: Tensor | None, d_logprobs: Tensor, d_entropy: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    """Run ``slopes_kernel``; ``out`` is ``[N,V]`` with dense columns, of any dtype, or the float32 logits."""
    # The interpreter cuts bfloat16 off, where a GPU rounds.
    written = out.float() if INTERPRETED and out.dtype == torch.bfloat16 else out
    given = (logits, bias, targets, top, log_sum, entropy, d_logprobs, d_entropy, written)
    sizes = (logits.shape[1], logits.stride(0), written.stride(0), 1 / temperature)
    block = STEPS * WARPS * 32 * (16 // logits.element_size())
    launch(slopes_kernel, len(logits), logits, *given, *sizes, BLOCK=block, num_warps=WARPS)
    if written is not out:
        out.copy_(written)


@torch.library.custom_op("rlhf_triton::logprobs_from_logits", mutates_args=())
def logprobs_from_logits(
    logits: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, top, log S and entropy ``[N]`` (``[0]`` where not asked for)."""
    found = room(logits, len(logits), entropy)
    rows(_dense_columns(logits), None, targets.contiguous(), temperature, *found[:3], found[3] if entropy else None)
    return found


@torch.library.custom_op("rlhf_triton::logits_gradient", mutates_args=())
def logits_gradient(
    logits: Tensor, targets: Tensor, top: Tensor, log_sum: Tensor, entropies: Tensor | None, d_logprobs: Tensor,
    d_entropy: Tensor | None, temperature: float,
) -> Tensor:  # fmt: skip
    """``[N,V]`` of the logits' dtype."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    above = (d_logprobs.contiguous(), None if d_entropy is None else d_entropy.contiguous())
    kept = (top, log_sum, entropies)
    slopes(_dense_columns(logits), None, targets.contiguous(), temperature, *kept, *above, gradient)
    return gradient


def room(like: Tensor, tokens: int, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For log-probs, top, log S ``[N]`` and entropy ``[N]`` or ``[0]``."""
    made = [like.new_empty(tokens, dtype=torch.float32) for _ in range(3)]
    return made[0], made[1], made[2], like.new_empty(tokens if entropy else 0, dtype=torch.float32)


def _dense_columns(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, ctx.temperature, ctx.entropy = inputs
    ctx.save_for_backward(logits, targets, *output[1:])


def _differentiate(ctx: Any, d_logprobs: Tensor, _: Tensor, __: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
    """A pass over the logits, which are kept."""
    *saved, entropies = ctx.saved_tensors
    about_entropy = (entropies, d_logprobs, d_entropy) if ctx.entropy else (None, d_logprobs, None)
    return logits_gradient(*saved, *about_entropy, ctx.temperature), None, None, None


logprobs_from_logits.register_fake(lambda logits, _, __, entropy: room(logits, logits.shape[0], entropy))
logprobs_from_logits.register_autograd(_differentiate, setup_context=_save)
logits_gradient.register_fake(lambda logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format))


def run(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """What ``logprobs.py`` of the folder above defines."""
    logprobs, _, _, entropies = logprobs_from_logits(logits, targets, temperature, entropy)
    return logprobs, entropies if entropy else None
