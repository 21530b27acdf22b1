"""One check: inputs, what an oracle says of them, and how to ask an implementation the same.

Numbers are kept as nested lists of Python floats, so that they print as what can be pasted; ``None`` in what is
expected stands for "not looked at".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Arguments = dict[str, Any]
Probe = Callable[[Function, Arguments], dict[str, Any]]
"""Asks an implementation's function: arguments as tensors → numbers by name, to be compared with what is expected."""


class Prompts(list[Any]):
    """A list of tensors of their own, where a plain list of lists is one tensor."""


@dataclass(frozen=True)
class Check:
    """What is asserted about one function.

    Attributes:
        group: whose table section it is in, as a rule the function's name.
        name: unique in its group.
        asserts: one line.
        source: a line of CORRECTNESS (docs/conformance.md), or a paper.
        why: what goes wrong where it does not hold, one line.
        inputs: the golden vector, arguments by name.
        expected: what the oracle computes from it, by the names that ``probe`` gives.
        probe: how to ask.
        function: which one, if not ``group``.
        dtype: of the floating inputs.
        tolerance: largest difference that agrees: absolute, relative where more than 1 is expected.
        choice: where frameworks may differ and be right: what the choice is.
    """

    group: str
    name: str
    asserts: str
    source: str
    why: str
    inputs: Mapping[str, Any]
    expected: Mapping[str, Any]
    probe: Probe
    function: str = ""
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-6
    choice: str = ""

    @property
    def id(self) -> str:
        """``group.name``."""
        return f"{self.group}.{self.name}"

    @property
    def asked(self) -> str:
        """The function it is about."""
        return self.function or self.group

    def arguments(self, dtype: torch.dtype | None = None, device: str = "cpu") -> Arguments:
        """The inputs as tensors, of another dtype than the check's where one is given."""
        return {name: as_tensor(value, dtype or self.dtype, device) for name, value in self.inputs.items()}


def as_tensor(value: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Lists become tensors: bool and int64 where they hold bools and ints, else of ``dtype``; anything else stays."""
    if isinstance(value, Prompts):
        return [as_tensor(item, dtype, device) for item in value]
    if not isinstance(value, list):
        return value
    first: Any = value
    while isinstance(first, list) and first:
        first = first[0]
    plain = type(first) in (bool, int)
    return torch.tensor(value, dtype=None if plain else dtype, device=device)


def as_numbers(came: Any) -> Any:
    """Tensors become nested lists of floats."""
    if isinstance(came, Tensor):
        return came.detach().double().tolist()
    if isinstance(came, list | tuple):
        return [as_numbers(item) for item in came]
    return float(came)


def outputs(*names: str) -> Probe:
    """What the function returns, a name for each of them."""

    def probe(function: Function, arguments: Arguments) -> dict[str, Any]:
        came = function(**arguments)
        return dict(zip(names, came if len(names) > 1 else (came,), strict=True))

    return probe


def loss_and_gradient(*inputs: str) -> Probe:
    """A scalar, and its gradient with respect to some of the inputs."""

    def probe(function: Function, arguments: Arguments) -> dict[str, Any]:
        arguments = leaves(arguments, inputs)
        loss = function(**arguments)
        return {"loss": loss} | gradients(loss, arguments, inputs)

    return probe


def gradient_alone(*inputs: str) -> Probe:
    """The gradient of a scalar whose value means nothing."""

    def probe(function: Function, arguments: Arguments) -> dict[str, Any]:
        arguments = leaves(arguments, inputs)
        return gradients(function(**arguments), arguments, inputs)

    return probe


def leaves(arguments: Arguments, inputs: tuple[str, ...]) -> Arguments:
    """The arguments, some of them such that a gradient can be taken."""

    def leaf(value: Any) -> Any:
        return [leaf(item) for item in value] if isinstance(value, list) else value.clone().requires_grad_()

    return {name: leaf(value) if name in inputs else value for name, value in arguments.items()}


def gradients(loss: Tensor, arguments: Arguments, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Zeros where no gradient flows."""
    found: dict[str, Any] = {}
    for name in inputs:
        several = isinstance(arguments[name], list)
        tensors = arguments[name] if several else [arguments[name]]
        grads: tuple[Tensor | None, ...] = (None,) * len(tensors)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss.sum(), tensors, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]
        found[f"gradient of {name}"] = filled if several else filled[0]
    return found
