# mypy: allow-untyped-calls
"""``token_logprobs``: what the row pass found of every row is kept, the logits are computed again (``head.py``).

N packed tokens, H hidden size, V vocabulary. Four products, forward and backward together.
"""

from typing import Any

import torch
from torch import Tensor

from .head import Head
from .logprobs import room


@torch.library.custom_op("rlhf_triton::token_logprobs", mutates_args=())
def token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, top, log S and entropy ``[N]`` (``[0]`` where not asked for)."""
    head = Head(hidden, weight, bias, targets, temperature)
    logprobs, top, log_sum, entropies = room(hidden, len(hidden), entropy)
    for rows in head.chunks():
        head.read(rows, head.logits(rows), logprobs, top, log_sum, entropies if entropy else None)
    return logprobs, top, log_sum, entropies


@torch.library.custom_op("rlhf_triton::token_logprobs_gradients", mutates_args=())
def token_logprobs_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, top: Tensor, log_sum: Tensor,
    entropies: Tensor | None, d_logprobs: Tensor, d_entropy: Tensor | None, temperature: float, of_hidden: bool,
    of_weight: bool, of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of hidden, weight and bias, ``[0]`` where not asked for."""
    wanted, unit = (of_hidden, of_weight, of_bias), None
    if hidden.dtype == torch.float16:
        above = [d_logprobs, d_logprobs.new_full((1,), torch.finfo(torch.float32).tiny)]
        unit = torch.cat(above if d_entropy is None else [*above, d_entropy]).abs().amax()
    head = Head(hidden, weight, bias, targets, temperature, wanted, unit)
    d_logprobs, d_entropy = d_logprobs.contiguous(), None if d_entropy is None else d_entropy.contiguous()
    for rows in head.chunks():
        above_rows = (d_logprobs[rows], None if d_entropy is None else d_entropy[rows])
        head.differentiate(rows, head.logits(rows), top, log_sum, entropies, *above_rows)
    found = zip((hidden, weight, bias), head.gradients(), strict=True)
    d_hidden, d_weight, d_bias = (hidden.new_empty(0) if d is None or x is None else d.to(x.dtype) for x, d in found)
    return d_hidden, d_weight, d_bias


def _shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    pairs = zip((hidden, weight, bias), rest[-3:], strict=True)
    made = [x.new_empty(x.shape) if wanted and x is not None else hidden.new_empty(0) for x, wanted in pairs]
    return made[0], made[1], made[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.temperature, ctx.entropy = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, d_logprobs: Tensor, _: Tensor, __: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
    *saved, entropies = ctx.saved_tensors
    about_entropy = (entropies, d_logprobs, d_entropy) if ctx.entropy else (None, d_logprobs, None)
    wanted = ctx.needs_input_grad[:3]
    found = token_logprobs_gradients(*saved, *about_entropy, ctx.temperature, *wanted)
    return *(x if needed else None for x, needed in zip(found, wanted, strict=True)), None, None, None


token_logprobs.register_fake(lambda hidden, *rest: room(hidden, hidden.shape[0], rest[-1]))
token_logprobs.register_autograd(_differentiate, setup_context=_save)
token_logprobs_gradients.register_fake(_shapes)


def run(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """What ``logprobs.py`` of the folder above defines."""
    logprobs, _, _, entropies = token_logprobs(hidden, weight, bias, targets, temperature, entropy)
    return logprobs, entropies if entropy else None
