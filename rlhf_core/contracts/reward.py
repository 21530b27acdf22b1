"""A reward: anything that gives each response one number, larger is better.

B responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..errors import UserError
from .data import Prompt

if TYPE_CHECKING:  # `rlhf list` reads contracts without torch
    from torch import Tensor

    from ..run import Run


@dataclass(frozen=True)
class Samples:
    """B prompts with one response each, as text for people and as the tokens that were sampled.

    Attributes:
        prompts: what was asked.
        responses: the responses' text, without special tokens.
        prompt_ids: the prompts' tokens.
        response_ids: the responses' tokens, the end token included where there is one.
        stops: why each response ended: ``eos`` (it chose to) or ``length`` (it was cut).
        tokenizer: whose tokens ``prompt_ids`` and ``response_ids`` are; None where only the text is known.
    """

    prompts: Sequence[Prompt]
    responses: Sequence[str]
    prompt_ids: Sequence[Sequence[int]] = ()
    response_ids: Sequence[Sequence[int]] = ()
    stops: Sequence[str] = ()
    tokenizer: Any = None

    def __len__(self) -> int:
        """B."""
        return len(self.responses)


@runtime_checkable
class Reward(Protocol):
    """Scores responses; one that also defines ``score_parts(samples)`` and ``total(parts)`` has its parts logged."""

    def setup(self, run: "Run") -> None:
        """Load what scoring needs; called once, before ``score``. Nothing of a reward is saved in checkpoints."""

    def score(self, samples: Samples) -> "Tensor":
        """``[B]`` float32 scores on the CPU or the run's device; finite, and independent of the order of the batch."""


def score_with_parts(reward: Reward, samples: Samples) -> "tuple[Tensor, Mapping[str, Tensor]]":
    """The scores, and those of the parts a reward is made of (none for a plain one)."""
    if not hasattr(reward, "score_parts"):
        return checked(reward.score(samples), reward, len(samples)), {}
    parts: Mapping[str, Tensor] = reward.score_parts(samples)
    return checked(reward.total(parts), reward, len(samples)), parts  # type: ignore[attr-defined]


def checked(scores: "Tensor", reward: Reward, count: int) -> "Tensor":
    """The scores, if they are one finite number a response; else a ``UserError`` that names the reward."""
    name = f"reward {type(reward).__module__}.{type(reward).__name__}"
    if not hasattr(scores, "shape"):
        raise UserError(f"{name}: score() gave {type(scores).__name__}, expected a tensor of {count} numbers")
    scores = scores.detach()
    if tuple(scores.shape) != (count,):
        raise UserError(f"{name}: score() gave shape {list(scores.shape)}, expected one number a response: [{count}]")
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"{name}: score() gave {float(scores[wrong[0]])} for response {wrong[0]}, expected finite numbers"
        )
    return scores
