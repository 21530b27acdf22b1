"""What compiled ops take: numbers as scalar tensors, and the two devices of one schema."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import extension
from ..dispatch import Implementation, Op

UNTRIED = "never run on a GPU: compiled for it, and tested on a CPU that emulates one"

BUILT = extension.why_not() is None
"""Whether torch.ops.rlhf has the ops."""


def scalar(number: "float | Tensor | None") -> Tensor | None:
    """A number as a tensor on the host; a tensor stays where it is."""
    return number if number is None or isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)


def add_cpu(op: Op[..., Any], run: Callable[..., Any], refuses: Callable[..., str | None]) -> None:
    """Register ``run`` for the CPU alone; ``refuses`` says why a call cannot be computed."""
    op.add("cpu", Implementation(run, devices=("cpu",), refuses=refuses, unavailable=extension.why_not()))


def add_cuda(op: Op[..., Any], run: Callable[..., Any], refuses: Callable[..., str | None]) -> None:
    """The same for CUDA devices."""
    op.add("cuda", Implementation(run, ("cuda",), refuses=refuses, unavailable=extension.cuda_why_not(), note=UNTRIED))


def add(op: Op[..., Any], run: Callable[..., Any], wide: Callable[..., bool]) -> None:
    """Register ``run`` for both devices; ``wide`` says whether a call's arguments hold float64, which GPUs refuse."""

    def on_gpu(*args: Any) -> str | None:
        return "takes float32 and narrower, not float64" if wide(*args) else None

    add_cpu(op, run, lambda *_: None)
    add_cuda(op, run, on_gpu)
