"""What models compute in: bfloat16 where the processor multiplies it (autocast, float32 weights), else float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .errors import UserError
from .kernels.native.products import BF16

CHOICES = ("auto", "float32", "bfloat16")
LARGE = 3_000_000
"""Parameters from which ``auto`` takes bfloat16: below, casting costs about what the products save."""

_choice = "auto"


def choose(name: str) -> None:
    """Set the precision of all models: auto, float32 or bfloat16.

    Raises:
        UserError: another word.
    """
    global _choice
    if name not in CHOICES:
        raise UserError(f"precision: got {name!r}, expected one of {', '.join(CHOICES)}")
    _choice = name


def compute_dtype(model: nn.Module) -> torch.dtype | None:
    """What the products of a model are taken in where that is not what its weights are."""
    weight = next(iter(model.parameters()), None)
    if _choice == "float32" or weight is None or weight.dtype != torch.float32:
        return None
    if _choice == "auto":
        large = sum(parameter.numel() for parameter in model.parameters()) >= LARGE
        if not large or weight.device.type != "cpu" or not BF16:
            return None
    return torch.bfloat16


@contextmanager
def computing(model: nn.Module) -> Iterator[torch.dtype | None]:
    """Run the model's products in ``compute_dtype``, which is given."""
    dtype = compute_dtype(model)
    device = next(iter(model.parameters())).device.type
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        yield dtype


def describe(model: nn.Module | None) -> dict[str, str]:
    """What was chosen, what this processor has, and what a model is computed in, for env.json."""
    used = {} if model is None else {"used": str(compute_dtype(model) or next(iter(model.parameters())).dtype)}
    has = "multiplies bfloat16" if BF16 else "does not multiply bfloat16"
    return {"choice": _choice, "processor": has, "autocast_from_parameters": str(LARGE), **used}
