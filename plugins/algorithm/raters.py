"""People, or another program, as raters: a file of candidates goes out, a file with ranks comes back."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rlhf_core.contracts.data import Message, Prompt, Ranking
from rlhf_core.errors import UserError


@dataclass(frozen=True)
class Candidates:
    """A prompt and the responses that are to be ranked."""

    prompt: Prompt
    responses: tuple[str, ...]

    @property
    def row(self) -> dict[str, Any]:
        """As a row of JSON lines that ``data=jsonl`` reads, but for the ranks."""
        turns = [{"role": turn.role, "content": turn.content} for turn in self.prompt.messages]
        return {"prompt": turns or self.prompt.text, "responses": list(self.responses)}

    @staticmethod
    def of(row: Any) -> "Candidates":
        """The reverse of ``row``; anything else raises an error of Python's."""
        given = row["prompt"]
        plain = Prompt(text=given) if isinstance(given, str) else None
        prompt = plain or Prompt(messages=tuple(Message(turn["role"], turn["content"]) for turn in given))
        return Candidates(prompt, tuple(row["responses"]))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def read_candidates(path: Path) -> list[Candidates]:
    """What ``write_rows`` wrote of candidates."""
    return [Candidates.of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def read_ranks(file: Path, candidates: Sequence[Candidates]) -> list[Ranking]:
    """The rows of ``file`` that have ranks; one row may be ranked several times, by several raters.

    Raises:
        UserError: a row is none of the candidates, or its ranks are not one finite number a response.
    """
    asked, found = set(candidates), []
    for number, row in rows_of(file):
        try:
            known = Candidates.of(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}:{number}: expected a row of candidates.jsonl with ranks added") from error
        if known not in asked:
            raise UserError(
                f"{file}:{number}: no such prompt and responses among the candidates; they have to stay as they are"
            )
        if "ranks" in row:
            found.append(
                Ranking(known.prompt, known.responses, checked(row["ranks"], len(known.responses), file, number))
            )
    return found


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file by number; none where there is no file yet."""
    if not file.exists():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}:{number}: is not JSON ({error.msg} at column {error.colno})") from error


def checked(ranks: Any, count: int, file: Path, number: int) -> tuple[float, ...]:
    """Ranks, if they are one finite number a response."""
    numbers = ranks if isinstance(ranks, list) else []
    fine = all(isinstance(rank, int | float) and not isinstance(rank, bool) and isfinite(rank) for rank in numbers)
    if len(numbers) != count or not fine:
        raise UserError(
            f"{file}:{number}: ranks: got {json.dumps(ranks)[:60]}, expected {count} numbers, one a response; "
            "0 is best, equal is a tie"
        )
    return tuple(map(float, numbers))
