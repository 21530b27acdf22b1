# mypy: allow-untyped-calls
"""What every op does around its kernels: dense float32 inputs, scalars read where they lie, a launch."""

from typing import Any

import torch
from torch import Tensor

Number = float | Tensor


def launch(kernel: Any, programs: int, like: Tensor, *arguments: object, **options: object) -> None:
    """Run ``programs`` instances on ``like``'s device; none at all where there is nothing to do."""
    if programs:
        with torch.cuda.device_of(like):
            kernel[(programs,)](*arguments, **options, enable_fp_fusion=True)  # its default depends on the version


def constant(tensor: Tensor | None) -> Tensor | None:
    """float32, without gradient."""
    return None if tensor is None else tensor.detach().to(torch.float32)


def learnt(tensor: Tensor | None) -> Tensor | None:
    """float32, by a cast that the gradient goes back through."""
    return None if tensor is None else tensor.to(torch.float32)


def scalar(number: Number | None) -> Tensor | None:
    """A number as the 0-dim tensor that an op takes."""
    if isinstance(number, Tensor):
        return number.detach()
    return None if number is None else torch.tensor(float(number), dtype=torch.float64)


def argument(number: Tensor | None) -> Number | None:
    """What a kernel gets of it (``sums.number``): its value where it is on the host, its address on the device."""
    return float(number.item()) if number is not None and number.device.type == "cpu" else number


def dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous."""
    return None if tensor is None else tensor.contiguous()
