"""One implementation, ready for one case: its forward, and its backward through whichever leaves it used."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .case import Case
from .timing import Clock

Outputs = Mapping[str, Tensor]


class Prepared:
    """What is timed.

    Attributes:
        forward: computes the outputs.
        case: what from.
    """

    def __init__(self, case: Case, forward: Callable[[], Outputs]) -> None:
        """Take what an implementation's ``prepare`` gave."""
        self.case, self.forward = case, forward
        self._leaves: list[tuple[str, Tensor]] = []

    def backward(self, outputs: Outputs, keep: bool = False) -> tuple[Tensor, ...]:
        """Gradients for the leaves that :meth:`gradients` found, which has to have been called.

        Args:
            outputs: of a forward.
            keep: so that what the forward kept is not freed meanwhile.
        """
        return torch.autograd.grad(*self._root(outputs, [leaf for _, leaf in self._leaves]), retain_graph=keep)

    def gradients(self, outputs: Outputs) -> dict[str, Tensor]:
        """``grad_<input>`` by name, in the implementation's layout; remembers which leaves take part."""
        leaves = self.case.leaves()
        found = torch.autograd.grad(*self._root(outputs, [leaf for _, leaf in leaves]), allow_unused=True)
        used = [(name, leaf, grad) for (name, leaf), grad in zip(leaves, found, strict=True) if grad is not None]
        self._leaves = [(name, leaf) for name, leaf, _ in used]
        return {f"grad_{name}": grad for name, _, grad in used}

    def _root(self, outputs: Outputs, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """What is differentiated: ``loss``, or ``out`` with the case's ``upstream`` gradient in the same layout."""
        if "loss" in outputs:
            return outputs["loss"], leaves, None
        upstream = self.case.packed["upstream"]
        padded = outputs["out"].shape != upstream.shape
        return outputs["out"], leaves, self.case.padded["upstream"] if padded else upstream

    def full(self) -> tuple[Outputs, tuple[Tensor, ...]]:
        """Forward and backward."""
        outputs = self.forward()
        return outputs, self.backward(outputs)

    def repetition(self, mode: str, clock: Clock) -> float:
        """Milliseconds of one; of ``bwd``, the forward before it is not timed."""
        if mode == "bwd":
            outputs = self.forward()
            return clock.time(lambda: self.backward(outputs))
        return clock.time(self.full if mode == "full" else self.forward)
