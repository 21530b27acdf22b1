"""An evaluator: an independent look at what a stage has learned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..errors import UserError
from .reward import Reward, Samples

if TYPE_CHECKING:
    from ..language_model import LanguageModel
    from ..run import Run


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a stage offers what it has.

    Attributes:
        scorer: the reward model under training, as a reward.
        samples: the policy's responses to held-out prompts.
        baseline: the start model's responses to the same prompts.
        policy: the language model under training.
    """

    scorer: Reward | None = None
    samples: Samples | None = None
    baseline: Samples | None = None
    policy: "LanguageModel | None" = None


@runtime_checkable
class Evaluator(Protocol):
    """Measures a subject; one that lacks what the measure needs gives an empty dict."""

    def setup(self, run: "Run") -> None:
        """Load what measuring needs; called once."""

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Named numbers, logged as they are."""


def measure(evaluators: Mapping[str, Evaluator], subject: Subject) -> dict[str, float]:
    """What all evaluators say of a subject; what is not a dict of numbers, or a name used twice, is refused."""
    found: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        result = evaluator.evaluate(subject)
        if not isinstance(result, Mapping):
            raise UserError(f"evaluator {name}: evaluate() gave {type(result).__name__}, expected a dict of numbers")
        if twice := sorted(found.keys() & result.keys()):
            raise UserError(f"evaluator {name}: {twice[0]} is measured by another evaluator too; choose one of them")
        found |= {key: float(value) for key, value in result.items()}
    return found
