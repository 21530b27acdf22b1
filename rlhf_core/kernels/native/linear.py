"""What decoding multiplies, a few rows at a time, in C++: csrc/cpu/linear.cpp, head.cpp. No gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import widens
from .scalars import BUILT

MOST_ROWS = 256
"""Above, torch's products, which rearrange the weights first, are as fast."""


class FewRows:
    """The forward of one ``nn.Linear`` while responses are decoded; the weights are cast once."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        self.weight = layer.weight.detach().to(dtype).contiguous()
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, outputs]`` of ``[…, size]``."""
        rows = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        if len(rows) > MOST_ROWS:
            return F.linear(rows, self.weight, self.bias).view(*x.shape[:-1], -1)
        found: Tensor = torch.ops.rlhf.linear(rows, self.weight, self.bias)
        return found.view(*x.shape[:-1], -1)


@contextmanager
def few_rows(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Let the model's plain linear layers run by ``FewRows``, in ``dtype`` (None: that of their weights)."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _fits(layer, dtype)]
    for layer in layers:
        layer.forward = FewRows(layer, dtype or layer.weight.dtype)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fits(layer: nn.Linear, dtype: torch.dtype | None) -> bool:
    kind = dtype or layer.weight.dtype
    return BUILT and layer.weight.device.type == "cpu" and layer.in_features % 2 == 0 and not widens(kind)


def compiled_for(weight: Tensor) -> bool:
    """Whether ``sample_rows`` takes this head."""
    return BUILT and weight.device.type == "cpu" and not widens(weight.dtype)


def sample_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """A token a row of ``[B,H]`` hidden states from the softmax of the head's logits, and its log-prob.

    ``uniform`` are ``[B]`` float64 numbers in [0, 1): where the tokens lie in the distributions.
    """
    tokens, logprobs = torch.ops.rlhf.sample_rows(hidden, weight, bias, temperature, uniform)
    return tokens, logprobs
