"""A reward: anything that gives each response one number, larger is better.

B responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
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

    def select(self, indices: Sequence[int]) -> "Samples":
        """Those at ``indices``, in that order."""
        lists = {name: [values[i] for i in indices] if (values := getattr(self, name)) else () for name in LISTS}
        return Samples(**lists, tokenizer=self.tokenizer)

    @staticmethod
    def joined(parts: "Sequence[Samples]") -> "Samples":
        """The samples of all parts, one part after the other."""
        lists = {name: [value for part in parts for value in getattr(part, name)] for name in LISTS}
        return Samples(**lists, tokenizer=parts[0].tokenizer)


LISTS = ("prompts", "responses", "prompt_ids", "response_ids", "stops")
"""The fields of ``Samples`` that have an entry a response, where they are known."""


@runtime_checkable
class Reward(Protocol):
    """Scores responses.

    One that also defines ``score_parts(samples)`` and ``total(parts)`` has its parts logged. One that also defines
    ``score_steps(samples)`` rewards steps on the way (process rewards) on top of ``score``, by pairs for each response:
    (place of a step's last token in the response, counted from 0; its reward); None: none this time.
    """

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


def step_rewards(reward: Reward, samples: Samples) -> Sequence[Sequence[tuple[int, float]]] | None:
    """What the reward gives for steps on the way, checked; None where it only scores whole responses."""
    if not hasattr(reward, "score_steps"):
        return None
    name = f"reward {type(reward).__module__}.{type(reward).__name__}"
    steps: Sequence[Sequence[tuple[int, float]]] | None = reward.score_steps(samples)
    if steps is None:
        return None
    if len(steps) != len(samples):
        raise UserError(f"{name}: score_steps() gave {len(steps)} lists, expected one a response: {len(samples)}")
    for number, (response, given) in enumerate(zip(samples.response_ids, steps, strict=True)):
        for place, value in given:
            if not 0 <= place < len(response) or not isfinite(value):
                raise UserError(
                    f"{name}: score_steps() gave ({place}, {value}) for response {number}, expected a place from 0 to "
                    f"{len(response) - 1} and a finite number"
                )
    return steps
