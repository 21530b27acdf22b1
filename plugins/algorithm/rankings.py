"""Rankings as algorithms read them: the files they come from, their tokens, their pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rlhf_core.batch import Packed
from rlhf_core.contracts.data import Data, Ranking
from rlhf_core.errors import UserError
from rlhf_core.packing import within
from rlhf_core.text import encode_prompt, encode_response

from ..data.jsonl import Jsonl

FILE = "rankings.jsonl"
"""What a ``rank`` stage writes into its result."""


@dataclass(frozen=True)
class Ranked:
    """One ranking in tokens: a prompt, its responses, their ranks (smaller is better) and, if any, mean ratings."""

    prompt: list[int]
    responses: list[list[int]]
    ranks: tuple[float, ...]
    ratings: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Tokens; the prompt is there once."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def informative(self) -> bool:
        """Whether any two responses are not tied."""
        return len(set(self.ranks)) > 1

    def pairs(self) -> Iterator["Ranked"]:
        """Every two of the responses as a ranking of their own, tied ones too."""
        for pair in combinations(range(len(self.ranks)), 2):
            ranks, ratings = (tuple(values[i] for i in pair) if values else () for values in (self.ranks, self.ratings))
            yield Ranked(self.prompt, [self.responses[i] for i in pair], ranks, ratings)


@dataclass(frozen=True)
class Microbatch:
    """Whole rankings, and how many of what the loss is a mean over their minibatch holds: rankings, or pairs."""

    rankings: list[Ranked]
    denominator: int


def cut(batch: list[Ranked], budget: int) -> list[list[Ranked]]:
    """Rankings in pieces of at most ``budget`` tokens; none is cut apart."""
    return [[batch[index] for index in group] for group in within([ranking.size for ranking in batch], budget)]


def pack(rankings: list[Ranked], device: torch.device) -> Packed:
    """The responses of all rankings in one row, those to one prompt side by side."""
    rows = [(ranking.prompt, response) for ranking in rankings for response in ranking.responses]
    return Packed.answers(*zip(*rows, strict=True), device=device)


def ranked(rows: Sequence[Ranking], tokenizer: Any, max_length: int) -> Iterator[Ranked]:
    """Rankings in tokens; a response is cut where it would go on beyond ``max_length``."""
    for row in rows:
        prompt = encode_prompt(tokenizer, row.prompt)
        if (room := max_length - len(prompt)) > 0:  # else nothing of the responses would be left to tell them apart
            responses = [encode_response(tokenizer, response)[:room] for response in row.responses]
            yield Ranked(prompt, responses, row.ranks, tuple(map(fmean, row.ratings)))


def read_rankings(paths: Sequence[str], data: Data) -> list[Ranking]:
    """The rankings in files, or in the folders of ``rank`` stages; all of them are for training.

    Rows are those of ``data=jsonl``. A prompt that is a string is read as that of the run's own data: plain text where
    those set ``chat=false``, else a user's turn.

    Raises:
        UserError: a file is missing, or a row is wrong.
    """
    if not paths:
        return []
    chat = getattr(data, "chat", True)
    reader = Jsonl(ranking_files=[found(path) for path in paths], validation_fraction=0, test_fraction=0, chat=chat)
    reader.setup(0)
    return reader.rankings("train")


def found(path: str) -> str:
    """The file itself, or the one in a stage's result or run folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    for place in (folder / FILE, folder / "result" / FILE):
        if place.exists():
            return str(place)
    raise UserError(f"algorithm.ranking_files: {path} holds no {FILE}, expected the result of a rank stage, or a file")
