# mypy: allow-untyped-calls
"""Ops of the namespace ``rlhf_triton``, so that torch.compile and opcheck know them; losses with their autograd.

By hand rather than ``torch.library.custom_op`` and ``register_autograd``, which go through the schema on every call:
150 µs for policy_loss, measured, where a kernel takes 10.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .scaling import scale_

_library = torch.library.Library("rlhf_triton", "DEF")


def register(compute: Callable[..., Any], shapes: Callable[..., Any], learnt: Sequence[int] = ()) -> Callable[..., Any]:
    """Define the op with ``compute``'s name and annotations.

    Args:
        compute: runs the kernels; gives new dense tensors.
        shapes: gives empty tensors as ``compute`` does, for tracing.
        learnt: positions of the arguments that have a gradient. The first output is then a scalar loss, and the last
            ones are these arguments' gradients for an upstream gradient of 1.

    Returns:
        What calls it and gives the outputs that are not gradients.
    """
    name = compute.__name__
    _library.define(name + torch.library.infer_schema(compute, mutates_args=()))
    _library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rlhf_triton::{name}", shapes, lib=_library)
    op = getattr(torch.ops.rlhf_triton, name).default

    def wanted(arguments: Sequence[Any]) -> bool:
        return torch.is_grad_enabled() and any(arguments[p] is not None and arguments[p].requires_grad for p in learnt)

    def differentiable(keyset: torch.DispatchKeySet, *arguments: Any) -> Any:
        def below(*arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

        return _ScalarLoss.apply(below, learnt, *arguments) if wanted(arguments) else below(*arguments)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not wanted(arguments):
            return op(*arguments)[: -len(learnt) or None]
        return _OwnedGradients.apply(op, learnt, *arguments)

    _library.impl(name, differentiable, "Autograd", with_keyset=True)
    return call


class _ScalarLoss(torch.autograd.Function):
    """The gradient of an argument is the one the op gave, times what comes from above."""

    @staticmethod
    def forward(ctx: Any, op: Any, learnt: Sequence[int], *arguments: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = op(*arguments)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*outputs[-len(learnt) :])
        ctx.learnt = learnt
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted = _wanted(ctx, ctx.saved_tensors)
        return _placed(ctx, {position: gradient * upstream[0] for position, gradient in wanted.items()})


class _OwnedGradients(torch.autograd.Function):
    """The same where nobody else sees the gradients: they are scaled in place, if at all (``scaling.py``).

    They are handed out by that, so another backward pass through the same graph computes them again.
    """

    @staticmethod
    def forward(ctx: Any, op: Any, learnt: Sequence[int], *arguments: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = op(*arguments)
        seen, gradients = outputs[: -len(learnt)], outputs[-len(learnt) :]
        ctx.mark_non_differentiable(*seen[1:])
        ctx.save_for_backward(*gradients, *(x for x in arguments if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in arguments]
        ctx.op, ctx.learnt, ctx.handed_out = op, learnt, False
        return seen

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.learnt)
        gradients, tensors = ctx.saved_tensors[:count], iter(ctx.saved_tensors[count:])
        if ctx.handed_out:
            with torch.no_grad():
                gradients = ctx.op(*(next(tensors) if x is None else x[0] for x in ctx.others))[-count:]
        ctx.handed_out = True
        wanted = _wanted(ctx, gradients)
        scale_(list(wanted.values()), upstream[0])
        return _placed(ctx, wanted)


def _wanted(ctx: Any, gradients: Sequence[Tensor]) -> dict[int, Tensor]:
    """Those asked for, by the position of their argument: after ``op`` and ``learnt``."""
    positions = [2 + position for position in ctx.learnt]
    return {p: gradient for p, gradient in zip(positions, gradients, strict=True) if ctx.needs_input_grad[p]}


def _placed(ctx: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(gradients.get(position) for position in range(len(ctx.needs_input_grad)))
