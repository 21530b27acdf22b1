"""An algorithm: how a policy gets better from data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..optimizer import AdamW
    from ..run import Run


@dataclass(frozen=True)
class Loss:
    """One microbatch's share of a loss.

    Attributes:
        value: scalar to call ``backward`` on; already divided by the whole minibatch's denominator, so that the
            shares of its microbatches add up.
        metrics: named scalars, averaged over microbatches with ``weight`` (a name ending in ``_max``: the largest).
        weight: what the metrics are means over, usually the number of tokens.
    """

    value: "Tensor"
    metrics: "Mapping[str, Tensor | float]" = field(default_factory=dict)
    weight: float = 1.0


@runtime_checkable
class Algorithm(Protocol):
    """One training step is: collect a batch, then for each of its minibatches one optimiser step.

    The trainer owns the loop, the optimiser, logging and checkpoints; the algorithm owns the objective. Needed are
    ``optimizer``, ``setup``, ``total_steps``, ``collect``, ``loss`` and ``save``; what else is left out is as
    ``Defaults`` has it.
    """

    optimizer: "AdamW"

    def setup(self, run: "Run") -> "nn.Module":
        """Make models and read data; return what is trained and saved in checkpoints (parameters with grad)."""

    @property
    def total_steps(self) -> int:
        """How many steps the stage has."""

    def arithmetic(self) -> str:
        """The batch arithmetic in one line, printed before the first step; raises where numbers do not divide."""

    def collect(self, step: int) -> Any:
        """The batch of step ``step`` (0-based): from the data, or sampled from the policy."""

    def minibatches(self, batch: Any) -> Iterable[list[Any]]:
        """The batch as minibatches (one optimiser step each), each a list of microbatches."""

    def loss(self, microbatch: Any) -> Loss:
        """The loss of one microbatch."""

    def metrics(self, batch: Any) -> dict[str, float]:
        """What is worth logging of a whole batch, beside the averages of ``Loss.metrics``."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out numbers."""

    def state_dict(self) -> dict[str, Any]:
        """State beside the trained parameters: tensors, numbers, strings, lists and dicts of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""

    def save(self, folder: Path) -> None:
        """Write the result as a plain transformers checkpoint; of several processes only the first does."""

    def headline(self, metrics: dict[str, float]) -> str:
        """What the stage learned, in one line for people, from its last evaluation."""


class Defaults:
    """What an algorithm does where it says nothing else. A plugin has these without deriving from anything."""

    total_steps: int

    def arithmetic(self) -> str:
        """Its steps."""
        return f"{self.total_steps} steps"

    def minibatches(self, batch: Any) -> Iterable[list[Any]]:
        """One optimiser step on the whole batch, in one piece."""
        return [[batch]]

    def metrics(self, batch: Any) -> dict[str, float]:
        """Nothing."""
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """Nothing is held out."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything follows from the parameters and the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def headline(self, metrics: dict[str, float]) -> str:
        """The last evaluation as it is."""
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "trained; nothing was measured"


OPTIONAL = tuple(name for name, value in vars(Defaults).items() if callable(value))
"""The methods that may be left out."""


def completed(algorithm: Any) -> Algorithm:
    """The algorithm, with the methods that it left out bound to it."""
    for name in OPTIONAL:
        if not hasattr(algorithm, name):
            setattr(algorithm, name, MethodType(getattr(Defaults, name), algorithm))
    return cast(Algorithm, algorithm)
