"""A scalar loss whose gradients were computed along with it: what autograd would find by going back over every op."""

from typing import Any

import torch
from torch import Tensor


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[: len(tensors) // 2])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(None for _ in ctx.saved_tensors), *(known * upstream for known in ctx.saved_tensors)


def with_gradients(loss: Tensor, gradients: dict[Tensor, Tensor]) -> Tensor:
    """``loss``, differentiable: the gradient of each key is its value, times what comes from above."""
    found: Tensor = _Known.apply(loss, *gradients.values(), *gradients)
    return found
