"""Your own data, as JSON lines: chat or plain; prompts, demonstrations, comparisons, rankings, text."""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rlhf_core.contracts.data import Demonstration, Message, Prompt, Ranking, Split
from rlhf_core.errors import UserError
from rlhf_core.plugins import did_you_mean

Row = dict[str, Any]
Item = str | Prompt | Demonstration | Ranking
FIELDS = ("text", "prompt", "response", "messages", "chosen", "rejected", "responses", "ranks")
ROLES = ("system", "user", "assistant")


class BadRow(ValueError):
    """What is wrong with a row: the field, what came, what was expected."""


@dataclass
class Jsonl:
    """Files of JSON lines (``.jsonl``, or ``.jsonl.gz``), one object a line.

    Rows of ``text_files``:
        ``{"text": "…"}``
    Rows of ``prompt_files``:
        ``{"prompt": PROMPT}``
    Rows of ``demonstration_files``:
        ``{"prompt": PROMPT, "response": "…"}``, or a whole chat ``{"messages": [TURN, …]}`` whose last turn is the
        assistant's: the response
    Rows of ``ranking_files``:
        comparisons ``{"prompt": PROMPT, "chosen": "…", "rejected": "…"}``, and rankings
        ``{"prompt": PROMPT, "responses": ["…", …], "ranks": [0, 1, 1, …]}`` of 2…9 responses, smaller is better and
        equal is a tie

    PROMPT is a string, or a list of TURNs that ends with the user's; a TURN is ``{"role": "system" | "user" |
    "assistant", "content": "…"}``. Other fields are passed over, so one file may serve several views: demonstrations
    and rankings are prompts, too.

    Rows are split by a hash of their prompt (of the text, where there is none), so that rows with one prompt stay
    together; the split does not depend on the seed or on the order of rows. Files named in ``validation_files`` or
    ``test_files`` as well are held out whole, with every row elsewhere that has one of their prompts. All rows are read
    and checked before the first step.
    """

    rlhf_api: ClassVar[int] = 1

    text_files: list[str] = field(default_factory=list)  # documents, for algorithm=lm
    prompt_files: list[str] = field(default_factory=list)  # prompts without responses, for rollouts
    demonstration_files: list[str] = field(default_factory=list)  # human-written responses, for algorithm=sft
    ranking_files: list[str] = field(default_factory=list)  # human comparisons and rankings, for algorithm=reward_model
    validation_files: list[str] = field(default_factory=list)  # those of the files above that are for validation alone
    test_files: list[str] = field(default_factory=list)  # those of the files above that are for testing alone
    validation_fraction: float = 0.1  # share of the prompts; unused where validation_files are given
    test_fraction: float = 0.1  # share of the prompts; unused where test_files are given
    chat: bool = True  # a prompt that is a string is a user's turn; false: plain text that the response continues
    rename: dict[str, str] = field(default_factory=dict)  # the file's field: ours, e.g. {completion: response}

    def setup(self, seed: int) -> None:
        """Read, check and split all files; the split is a property of the data, so ``seed`` does not move it."""
        self._check_config()
        parsers: dict[str, Callable[[Row], Item]] = {
            "text": lambda row: _string(row, "text"),
            "prompt": self._prompt_alone,
            "demonstration": self._demonstration,
            "ranking": self._ranking,
        }
        items = {view: self._read(self._files(view), parse) for view, parse in parsers.items()}
        fixed: dict[str, Split] = {}  # prompts of files that are held out whole; a test file's word is the last
        for file, item in (row for rows in items.values() for row in rows):
            if file in self.test_files:
                fixed[_key(item)] = "test"
            elif file in self.validation_files:
                fixed.setdefault(_key(item), "validation")
        self._views: dict[str, dict[Split, list[Any]]] = {}
        for view, found in items.items():
            self._views[view] = {"train": [], "validation": [], "test": []}
            for _, item in found:
                self._views[view][fixed.get(_key(item)) or self._split_of(_key(item))].append(item)

    def text(self, split: Split) -> list[str]:
        """The documents of a split."""
        return self._view("text", split)

    def prompts(self, split: Split) -> list[Prompt]:
        """The prompts of a split."""
        return self._view("prompt", split)

    def demonstrations(self, split: Split) -> list[Demonstration]:
        """The demonstrations of a split."""
        return self._view("demonstration", split)

    def rankings(self, split: Split) -> list[Ranking]:
        """The comparisons and rankings of a split."""
        return self._view("ranking", split)

    def _view(self, view: str, split: Split) -> list[Any]:
        if not self._files(view):
            there = ", ".join(f"data.{name}_files" for name in self._views if self._files(name))
            raise UserError(f"data=jsonl has no {view} rows; set data.{view}_files=[FILE] (set now: {there})")
        return self._views[view][split]

    def _files(self, view: str) -> list[str]:
        files: list[str] = getattr(self, f"{view}_files")
        return files

    def _check_config(self) -> None:
        named = [file for view in ("text", "prompt", "demonstration", "ranking") for file in self._files(view)]
        if not named:
            raise UserError("data=jsonl has no files; set data.demonstration_files=[FILE], or another data.…_files")
        for key in ("validation_files", "test_files"):
            for file in getattr(self, key):
                if file not in named:
                    hint = did_you_mean(file, named)
                    raise UserError(f"data.{key}: {file} has to stand under the files of a view, too{hint}")
        for key in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"data.{key}: got {getattr(self, key)}, expected a share from 0 to below 1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError("data.validation_fraction and data.test_fraction: together they leave nothing to train on")
        for theirs, ours in self.rename.items():
            if ours not in FIELDS:
                expected = f"expected one of {', '.join(FIELDS)}{did_you_mean(ours, FIELDS)}"
                raise UserError(f"data.rename.{theirs}: got {ours}, {expected}")

    def _split_of(self, key: str) -> Split:
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        test = 0.0 if self.test_files else self.test_fraction
        validation = 0.0 if self.validation_files else self.validation_fraction
        return "test" if place < test else "validation" if place < test + validation else "train"

    def _read(self, files: list[str], parse: Callable[[Row], Item]) -> list[tuple[str, Item]]:
        """All rows of ``files``, each with its file; the first bad row of a file is named, the others counted."""
        items: list[tuple[str, Item]] = []
        for file in files:
            count, bad = len(items), []
            for number, line in _lines(file):
                try:
                    row = _object(line)
                    row |= {ours: row[theirs] for theirs, ours in self.rename.items() if theirs in row}
                    items.append((file, parse(row)))
                except BadRow as problem:
                    bad.append(f"{file}:{number}: {problem}")
            if bad:
                raise UserError(bad[0] + (f" ({len(bad) - 1} more bad rows in this file)" if len(bad) > 1 else ""))
            if len(items) == count:
                raise UserError(f"{file}: holds no rows; expected one JSON object a line")
        return items

    def _prompt(self, row: Row) -> Prompt:
        if isinstance(_get(row, "prompt"), list):
            prompt = Prompt(messages=_turns(row, "prompt", last="user"))
        else:
            text = _string(row, "prompt")
            prompt = Prompt(messages=(Message("user", text),)) if self.chat else Prompt(text=text)
        if not prompt.shown.strip():
            raise BadRow("prompt: is empty")
        return prompt

    def _prompt_alone(self, row: Row) -> Prompt:
        return self._demonstration(row).prompt if "messages" in row and "prompt" not in row else self._prompt(row)

    def _demonstration(self, row: Row) -> Demonstration:
        if "messages" not in row:
            return Demonstration(self._prompt(row), _string(row, "response"))
        *turns, answer = _turns(row, "messages", last="assistant")
        if not turns or not answer.content.strip():
            raise BadRow("messages: expected turns, and then an answer that is not empty")
        return Demonstration(Prompt(messages=tuple(turns)), answer.content)

    def _ranking(self, row: Row) -> Ranking:
        if "chosen" in row or "rejected" in row:
            # People do rank empty answers, so they are kept; to demonstrate one is a mistake.
            responses: tuple[str, ...] = (_string(row, "chosen", empty=True), _string(row, "rejected", empty=True))
            return Ranking(self._prompt(row), responses, (0.0, 1.0))
        responses = tuple(_each(row, "responses", str, "strings"))
        ranks = tuple(map(float, _each(row, "ranks", (int, float), "numbers")))
        if not 2 <= len(responses) <= 9:
            raise BadRow(f"responses: got {len(responses)}, expected 2…9")
        if len(ranks) != len(responses) or not all(map(math.isfinite, ranks)):
            expected = f"expected {len(responses)} finite numbers, as many as responses"
            raise BadRow(f"ranks: got {_shown(row['ranks'])}, {expected}")
        return Ranking(self._prompt(row), responses, ranks)


def _key(item: Item) -> str:
    """What a row is split by: its prompt, or its text, as one line."""
    prompt = item.prompt if isinstance(item, Demonstration | Ranking) else item
    return " ".join((prompt if isinstance(prompt, str) else prompt.shown).split())


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, counted from 1."""
    path = Path(file).expanduser()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except FileNotFoundError as error:
        siblings = [str(path.parent / sibling.name) for sibling in path.parent.glob("*.jsonl*")]
        raise UserError(f"{file}: there is no such file{did_you_mean(str(path), siblings)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _object(line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig").strip())
    except json.JSONDecodeError as error:
        raise BadRow(f"is not JSON ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 (at byte {error.start})") from error
    if not isinstance(row, dict):
        raise BadRow(f"got {_shown(row)}, expected a JSON object")
    if b"\\ud" in line.lower() and any(
        "\ud800" <= letter <= "\udfff" for letter in json.dumps(row, ensure_ascii=False)
    ):
        raise BadRow("holds half of a surrogate pair (\\ud83d without its second part), which is no text")
    return row


def _get(row: Row, name: str) -> Any:
    if name not in row:
        there = ", ".join(row) or "nothing"
        raise BadRow(f"{name}: missing (the row has {there}); data.rename={{THEIRS: {name}}} takes another field")
    return row[name]


def _string(row: Row, name: str, *, empty: bool = False) -> str:
    value = _get(row, name)
    if not isinstance(value, str):
        raise BadRow(f"{name}: got {_shown(value)}, expected a string")
    if not (empty or value.strip()):
        raise BadRow(f"{name}: is empty")
    return value


def _each(row: Row, name: str, kind: type | tuple[type, ...], words: str) -> list[Any]:
    values = _get(row, name)
    if not isinstance(values, list):
        raise BadRow(f"{name}: got {_shown(values)}, expected a list of {words}")
    for index, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadRow(f"{name}[{index}]: got {_shown(value)}, expected a list of {words}")
    return values


def _turns(row: Row, name: str, *, last: str) -> tuple[Message, ...]:
    turns = []
    for index, turn in enumerate(_each(row, name, dict, "turns")):
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise BadRow(f"{name}[{index}].role: got {_shown(role)}, expected {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise BadRow(f"{name}[{index}].content: got {_shown(content)}, expected a string")
        turns.append(Message(role, content))
    if not turns or turns[-1].role != last:
        raise BadRow(f"{name}: ends with {turns[-1].role if turns else 'no'} turn, expected the {last}'s")
    return tuple(turns)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"
