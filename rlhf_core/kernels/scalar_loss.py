"""Autograd of a registered op that gives a scalar loss and, from the same pass, its gradients.

The loss is a scalar, so the gradient of an input is the one the op gave times what comes from above.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def register(op: str, learnt: Sequence[int], *, detached: int = 1) -> None:
    """Give the op named ``op`` a backward pass.

    Args:
        op: a name such as ``rlhf::ranking_loss``. Its outputs are the loss, ``detached`` tensors without gradient,
            and the gradient of each input of ``learnt``, for an upstream gradient of 1.
        learnt: positions of the inputs that have a gradient.
        detached: how many outputs lie between the loss and the gradients.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1 + detached :])
        ctx.inputs = len(inputs)

    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * ctx.inputs
        for position, gradient in zip(learnt, ctx.saved_tensors, strict=True):
            if ctx.needs_input_grad[position]:
                found[position] = _scaled(gradient, upstream)
        return tuple(found)

    torch.library.register_autograd(op, backward, setup_context=setup_context)


def _scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    """Spares the pass where nothing comes from above but 1, if looking costs nothing."""
    plain = type(upstream) is Tensor and upstream.device.type == "cpu" and not torch.compiler.is_compiling()
    return gradient if plain and upstream.item() == 1 else gradient * upstream
