"""A data source: prompts, demonstrations, human rankings and plain text, split once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args, runtime_checkable

from ..errors import UserError

Split = Literal["train", "validation", "test"]


def split_named(name: str, key: str) -> Split:
    """The split that the setting ``key`` names."""
    for split in get_args(Split):
        if split == name:
            return cast(Split, split)
    raise UserError(f"{key}: got {name!r}, expected one of {', '.join(get_args(Split))}")


@dataclass(frozen=True)
class Message:
    """One chat turn; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a response answers: chat turns (``messages``), or plain ``text`` that the response continues."""

    messages: tuple[Message, ...] = ()
    text: str = ""

    @property
    def shown(self) -> str:
        """The prompt as people read it."""
        return self.text or "\n".join(message.content for message in self.messages)


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response a person wrote."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class Ranking:
    """One prompt, K responses and their order by people.

    ``ranks[i]`` is the rank of ``responses[i]``: smaller is better, equal is a tie. ``ratings[i]``, where the source
    has them, are the single raters' scores of response i (larger is better), so that agreement between people can
    be measured.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[float, ...]
    ratings: tuple[tuple[float, ...], ...] = ()


@runtime_checkable
class Data(Protocol):
    """A source of training and evaluation data; a view it lacks raises ``UserError`` that says which it has."""

    def setup(self, seed: int) -> None:
        """Fetch, parse and split; called once, before any view."""

    def text(self, split: Split) -> Sequence[str]:
        """Plain documents, for pretraining."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts without responses, for rollouts."""

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """Human-written responses, for supervised fine-tuning."""

    def rankings(self, split: Split) -> Sequence[Ranking]:
        """Human rankings of K = 2…9 responses, for reward modelling."""
