"""An evaluator: an independent look at what a stage has learned."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .reward import Reward, Samples

if TYPE_CHECKING:
    from ..run import Run


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a stage offers what it has.

    Attributes:
        scorer: the reward model under training, as a reward.
        samples: the policy's responses to held-out prompts.
        baseline: the start model's responses to the same prompts.
    """

    scorer: Reward | None = None
    samples: Samples | None = None
    baseline: Samples | None = None


@runtime_checkable
class Evaluator(Protocol):
    """Measures a subject; one that lacks what the measure needs gives an empty dict."""

    def setup(self, run: "Run") -> None:
        """Load what measuring needs; called once."""

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Named numbers, logged as they are."""
