"""Data sources that are right, and ones with a single fault each.

Another process imports this file, too: no relative imports.
"""

import random
import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from rlhf_core.contracts.data import Demonstration, Message, Prompt, Ranking
from rlhf_core.errors import UserError

PLACES = {"train": (0, 48), "validation": (48, 54), "test": (54, 60)}


def asked(number: int) -> Prompt:
    return Prompt(messages=(Message("system", "Be kind."), Message("user", f"How is film number {number}?")))


@dataclass
class Right:
    """Sixty films, shuffled with the seed and cut once; all views."""

    rlhf_api: ClassVar[int] = 1

    size: int = 60

    def setup(self, seed: int) -> None:
        self._numbers = list(range(self.size))
        random.Random(seed).shuffle(self._numbers)

    def numbers(self, split: str) -> list[int]:
        first, last = PLACES[split]
        return self._numbers[first:last]

    def text(self, split: str) -> Any:
        return [f"Film number {number} is long." for number in self.numbers(split)]

    def prompts(self, split: str) -> Any:
        return [asked(number) for number in self.numbers(split)]

    def demonstrations(self, split: str) -> Any:
        return [Demonstration(asked(number), f"Film {number} is good.") for number in self.numbers(split)]

    def rankings(self, split: str) -> Any:
        return [self.ranking(number) for number in self.numbers(split)]

    def ranking(self, number: int) -> Ranking:
        responses = (f"{number} is bad.", f"{number} is good.", "I do not know.")
        return Ranking(asked(number), responses, (2.0, 0.0, 1.0), ((1.0, 2.0), (5.0, 4.0), (3.0, 2.5)))


@dataclass
class PromptsAlone(Right):
    """Right: plain text prompts, no other view, no validation split."""

    def text(self, split: str) -> Any:
        raise UserError("this source has prompts alone")

    demonstrations = rankings = text

    def prompts(self, split: str) -> Any:
        if split == "validation":
            raise UserError("there is no validation split; prompts are in train and test")
        return [Prompt(text=f"Film number {number} is") for number in self.numbers(split)]


class Lazy:
    """Rows that are made when they are asked for."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Prompt:
        return asked(self.numbers[place])


@dataclass
class LazyRows(PromptsAlone):
    """Right: an object with a length and rows by number."""

    def prompts(self, split: str) -> Any:
        return Lazy(self.numbers(split))


@dataclass
class Comparisons(PromptsAlone):
    """Right: pairs without ratings, some tied, some answers empty; numpy numbers; the same few prompts everywhere."""

    def text(self, split: str) -> Any:
        raise UserError("there are only comparisons here")

    demonstrations = prompts = text

    def rankings(self, split: str) -> Any:
        ranks = np.array([0.0, 1.0], dtype=np.float32)
        return [
            Ranking(asked(n % 3), (f"answer {n}", "" if n % 5 else f"no {n}"), tuple(ranks if n % 4 else ranks * 0))
            for n in self.numbers(split)
        ]


@dataclass
class FewPrompts(Right):
    """Right: three prompts, the same in every split; answers differ."""

    def prompts(self, split: str) -> Any:
        return [asked(number % 3) for number in self.numbers(split)]


RIGHT = [Right(), PromptsAlone(), LazyRows(), Comparisons(), FewPrompts()]


@dataclass
class NotImplementedView(Right):
    """Says that a view is lacking by NotImplementedError."""

    def text(self, split: str) -> Any:
        raise NotImplementedError


@dataclass
class KeyOfASplit(Right):
    """A split that it does not have is a KeyError."""

    def text(self, split: str) -> Any:
        return {"train": ["a document"], "test": ["another document"]}[split]


@dataclass
class NoneForAView(Right):
    """Gives None for a view that it lacks."""

    def text(self, split: str) -> Any:
        return None


@dataclass
class SilentError(Right):
    """Its UserError does not say what there is."""

    def text(self, split: str) -> Any:
        raise UserError("not available")


@dataclass
class EmptyView(Right):
    """Gives an empty list for a view that it lacks."""

    def text(self, split: str) -> Any:
        return []


@dataclass
class NothingToTrainOn(PromptsAlone):
    """All rows fell into the test split."""

    def prompts(self, split: str) -> Any:
        return [asked(number) for number in self._numbers] if split == "test" else []


@dataclass
class GeneratorView(Right):
    """A view is a generator."""

    def text(self, split: str) -> Any:
        yield from super().text(split)


@dataclass
class OneText(Right):
    """All documents in one text."""

    def text(self, split: str) -> Any:
        return "\n".join(super().text(split))


@dataclass
class ByName(Right):
    """Rows by name instead of by number."""

    def prompts(self, split: str) -> Any:
        return {f"row_{number}": asked(number) for number in self.numbers(split)}


class Endless(Lazy):
    """Goes around for ever."""

    def __getitem__(self, place: int) -> Prompt:
        return asked(self.numbers[place % len(self.numbers)])


@dataclass
class EndlessRows(Right):
    """A row past the end raises nothing."""

    def prompts(self, split: str) -> Any:
        return Endless(self.numbers(split))


class FromTheFront(Lazy):
    """Knows no negative places."""

    def __getitem__(self, place: int) -> Prompt:
        if not 0 <= place < len(self.numbers):
            raise IndexError(place)
        return super().__getitem__(place)


@dataclass
class NoLastRow(Right):
    """rows[-1] raises."""

    def prompts(self, split: str) -> Any:
        return FromTheFront(self.numbers(split))


@dataclass
class UsedUp(Right):
    """The second reading of a view gives other rows."""

    def setup(self, seed: int) -> None:
        super().setup(seed)
        self._generators = {split: random.Random(f"{seed}/{split}") for split in PLACES}

    def demonstrations(self, split: str) -> Any:
        rows = super().demonstrations(split)
        self._generators[split].shuffle(rows)
        return rows


@dataclass
class SharedGenerator(Right):
    """One generator for all splits of a view, made at the first reading: the order depends on which is read first."""

    def setup(self, seed: int) -> None:
        super().setup(seed)
        self._random, self._kept = random.Random(seed), {}

    def demonstrations(self, split: str) -> Any:
        if split not in self._kept:
            self._kept[split] = super().demonstrations(split)
            self._random.shuffle(self._kept[split])
        return self._kept[split]


@dataclass
class TestedOnTrained(Right):
    """The test split is the end of train."""

    def numbers(self, split: str) -> list[int]:
        return super().numbers("train")[-6:] if split == "test" else super().numbers(split)


@dataclass
class OneRowTooMany(Right):
    """A cut that is off by one; of demonstrations."""

    def demonstrations(self, split: str) -> Any:
        first, last = PLACES[split]
        return [Demonstration(asked(n), f"{n} is good.") for n in self._numbers[first : last + 1]]


@dataclass
class NeverSplit(PromptsAlone):
    """Prompts are the same in every split."""

    def prompts(self, split: str) -> Any:
        return [asked(number) for number in self._numbers]


@dataclass
class BlankDocument(Right):
    """A document is blank."""

    def text(self, split: str) -> Any:
        rows = super().text(split)
        return [*rows[:3], " \n", *rows[4:]] if split == "train" else rows


@dataclass
class BytesDocument(Right):
    """Documents are bytes."""

    def text(self, split: str) -> Any:
        return [row.encode() for row in super().text(split)]


@dataclass
class WithPrompt(Right):
    """Prompts are made by ``wrong``, in all views."""

    def wrong(self, prompt: Prompt) -> Any:
        raise NotImplementedError

    def prompts(self, split: str) -> Any:
        return [self.wrong(prompt) for prompt in super().prompts(split)]

    def demonstrations(self, split: str) -> Any:
        return [replace(row, prompt=self.wrong(row.prompt)) for row in super().demonstrations(split)]

    def rankings(self, split: str) -> Any:
        return [replace(row, prompt=self.wrong(row.prompt)) for row in super().rankings(split)]


class TextPrompt(WithPrompt):
    """A prompt is a plain str."""

    def wrong(self, prompt: Prompt) -> Any:
        return prompt.shown


class DictMessages(WithPrompt):
    """Messages are dicts."""

    def wrong(self, prompt: Prompt) -> Any:
        return Prompt(messages=tuple(vars(message) for message in prompt.messages))


class HumanRole(WithPrompt):
    """A role is called human."""

    def wrong(self, prompt: Prompt) -> Any:
        return Prompt(messages=(Message("human", prompt.shown),))


class EndsWithTheAnswer(WithPrompt):
    """The assistant's turn is left in the prompt."""

    def wrong(self, prompt: Prompt) -> Any:
        return Prompt(messages=(*prompt.messages, Message("assistant", "Good.")))


class BothKinds(WithPrompt):
    """Messages, and text beside them."""

    def wrong(self, prompt: Prompt) -> Any:
        return replace(prompt, text=prompt.shown)


class EmptyPrompt(WithPrompt):
    """Reads a field that is not there: every prompt is empty."""

    def wrong(self, prompt: Prompt) -> Any:
        return Prompt(text={"prompt": prompt.shown}.get("promt", ""))


class BlankTurn(WithPrompt):
    """A user's turn is blank."""

    def wrong(self, prompt: Prompt) -> Any:
        return Prompt(messages=(*prompt.messages[:-1], Message("user", "  ")))


class NumberContent(WithPrompt):
    """The content of a turn is a number."""

    def wrong(self, prompt: Prompt) -> Any:
        return Prompt(messages=(Message("user", 7),))


@dataclass
class LastRowOfTest(Right):
    """The last row of the test split alone is broken."""

    def prompts(self, split: str) -> Any:
        rows = super().prompts(split)
        return [*rows[:-1], Prompt(text="")] if split == "test" else rows


@dataclass
class PairsForDemonstrations(Right):
    """Demonstrations are tuples."""

    def demonstrations(self, split: str) -> Any:
        return [(row.prompt, row.response) for row in super().demonstrations(split)]


@dataclass
class EmptyResponse(Right):
    """A demonstration says nothing."""

    def demonstrations(self, split: str) -> Any:
        first, *rows = super().demonstrations(split)
        return [*rows, replace(first, response="")]


@dataclass
class MessageResponse(Right):
    """A response is a turn."""

    def demonstrations(self, split: str) -> Any:
        return [replace(row, response=Message("assistant", row.response)) for row in super().demonstrations(split)]


@dataclass
class PromptInResponse(Right):
    """Responses are whole conversations."""

    def demonstrations(self, split: str) -> Any:
        rows = super().demonstrations(split)
        return [replace(row, response=f"{row.prompt.shown}\n{row.response}") for row in rows]


@dataclass
class PromptInRanked(Right):
    """Ranked responses are whole conversations."""

    def ranking(self, number: int) -> Ranking:
        row = super().ranking(number)
        return replace(row, responses=tuple(f"{row.prompt.shown} {text}" for text in row.responses))


@dataclass
class WithRanking(Right):
    """Rankings with other fields."""

    fields: dict[str, Any] = field(default_factory=dict)

    def ranking(self, number: int) -> Ranking:
        return replace(super().ranking(number), **self.fields)


@dataclass
class OneResponse(Right):
    """Rankings of one response."""

    def ranking(self, number: int) -> Ranking:
        return Ranking(asked(number), (f"{number} is good.",), (0.0,))


@dataclass
class TenResponses(Right):
    """Rankings of ten responses."""

    def ranking(self, number: int) -> Ranking:
        return Ranking(asked(number), tuple(f"{number}, {k}" for k in range(10)), tuple(map(float, range(10))))


@dataclass
class DictRankings(Right):
    """Rankings are rows of the file."""

    def rankings(self, split: str) -> Any:
        return [vars(row) for row in super().rankings(split)]


@dataclass
class ReversedRanks(Right):
    """Larger is better."""

    def ranking(self, number: int) -> Ranking:
        row = super().ranking(number)
        return replace(row, ranks=tuple(2.0 - rank for rank in row.ranks))


@dataclass
class RatingsAsRanks(Right):
    """Mean ratings where ranks belong."""

    def ranking(self, number: int) -> Ranking:
        row = super().ranking(number)
        return replace(row, ranks=tuple(sum(ratings) / len(ratings) for ratings in row.ratings))


@dataclass
class ChosenTwice(Right):
    """Both responses are read from one field."""

    def ranking(self, number: int) -> Ranking:
        return Ranking(asked(number), (f"{number} is good.",) * 2, (0.0, 1.0))


@dataclass
class FromTheClock(Right):
    """Shuffled anew each time."""

    def setup(self, seed: int) -> None:
        super().setup(seed)
        random.Random(time.perf_counter_ns()).shuffle(self._numbers)


@dataclass
class FromTheGlobalGenerator(Right):
    """Shuffled with the global generator."""

    def setup(self, seed: int) -> None:
        super().setup(seed)
        random.shuffle(self._numbers)


@dataclass
class FromNumpy(Right):
    """A view is permuted with numpy's global generator."""

    def setup(self, seed: int) -> None:
        super().setup(seed)
        self._order = np.random.permutation(48)

    def demonstrations(self, split: str) -> Any:
        rows = super().demonstrations(split)
        return [rows[place] for place in self._order] if split == "train" else rows


@dataclass
class SeedsTheGlobalGenerator(Right):
    """Seeds the global generator, and shuffles with it."""

    def setup(self, seed: int) -> None:
        super().setup(seed)
        random.seed(seed)
        random.shuffle(self._numbers)


@dataclass
class OrderOfASet(Right):
    """Rows come in the order of a set of strings."""

    def setup(self, seed: int) -> None:
        self._numbers = [int(text) for text in {str(number) for number in range(self.size)}]


@dataclass
class SplitByHash(PromptsAlone):
    """Split by hash()."""

    def prompts(self, split: str) -> Any:
        place = list(PLACES).index(split)
        return [asked(number) for number in self._numbers if hash(f"film {number}") % 3 == place]


@dataclass
class SmallSeeds(Right):
    """A seed goes to numpy as it is."""

    def setup(self, seed: int) -> None:
        self._numbers = np.random.RandomState(seed).permutation(self.size).tolist()
