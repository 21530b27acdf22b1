"""Reads what a data source holds, in this process, and as a script in one of its own.

Nothing of the package is imported here, so that the other process starts at once.
"""

import hashlib
import json
import pickle
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from typing import Any

VIEWS = ("text", "prompts", "demonstrations", "rankings")
SPLITS = ("train", "validation", "test")
LOOKED_AT = 100
"""rows at the beginning, at the end, and evenly spaced between; a source may be large"""


@dataclass(frozen=True)
class Rows:
    """Some rows of a view by their number, and how many there are."""

    count: int
    some: Mapping[int, Any]


Reading = dict[tuple[str, str], Rows]
"""View and split → rows."""


def read(data: Any, views: Iterable[str] = VIEWS, splits: Iterable[str] = SPLITS) -> Reading:
    """Every view that there is. How those say so that are not there is the matter of a check of its own."""
    splits = tuple(splits)
    found: Reading = {}
    for view in views:
        for split in splits:
            try:
                found[view, split] = looked_at(getattr(data, view)(split))
            except Exception:  # see above; a stranger's code may raise anything
                continue
    return found


def looked_at(rows: Any) -> Rows:
    """Rows of a sequence by their numbers, of anything else its first ones.

    Raises:
        TypeError: it is one text, whose letters are no rows.
    """
    if isinstance(rows, str | bytes):
        raise TypeError(f"one {type(rows).__name__}")
    if isinstance(rows, Sequence) or (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        return Rows(len(rows), {place: rows[place] for place in places(len(rows))})
    some = dict(enumerate(islice(rows, LOOKED_AT)))
    return Rows(len(some), some)


def places(count: int) -> list[int]:
    """The first, the last, and some between."""
    ends = {*range(min(count, LOOKED_AT)), *range(max(0, count - LOOKED_AT), count)}
    return sorted(ends | set(range(0, count, max(1, count // LOOKED_AT))))


def written(reading: Reading) -> Reading:
    """Rows as text, so that they can be compared with another process's; long ones shortened, with a digest."""
    return {
        place: Rows(rows.count, {number: text_of(row) for number, row in rows.some.items()})
        for place, rows in reading.items()
    }


def text_of(row: Any) -> str:
    """A row as text; equal for equal rows, in every process."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(row))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return text if len(text) <= 120 else f"{text[:110]}… [{digest}]"


def difference(one: Reading, other: Reading, then: str) -> str:
    """The first place where two readings, as text, are not the same; ``then`` says when the other was made."""
    for (view, split), rows in one.items():
        name, there = f"{view}({split!r})", other.get((view, split))
        if there is None:
            return f"{name} has {rows.count} rows and, {then}, cannot be read"
        if rows.count != there.count:
            return f"{name} has {rows.count} rows and, {then}, {there.count}"
        differ = [number for number, row in rows.some.items() if row != there.some[number]]
        if differ:
            first = differ[0]
            shown = f"{name}, row {first} is {rows.some[first]} and, {then}, {there.some[first]}"
            return f"{shown} ({len(differ)} of {len(rows.some)} rows that were looked at differ)"
    return ""


def elsewhere(module: str, file: str | None, pickled: bytes, seed: int) -> list[Any]:
    """Set a pickled source up and read it, as JSON has it."""
    try:
        import_module(module)
    except ImportError:
        if file is None:
            raise
        spec = spec_from_file_location(module, file)
        assert spec is not None and spec.loader is not None
        sys.modules[module] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    data = pickle.loads(pickled)
    data.setup(seed)
    return [[*place, rows.count, list(rows.some.items())] for place, rows in written(read(data)).items()]


def reading_of(told: list[Any]) -> Reading:
    """What ``elsewhere`` gave, after JSON."""
    return {(view, split): Rows(count, dict(map(tuple, rows))) for view, split, count, rows in told}


def main() -> None:
    """Read the source that standard input describes, and write what it holds to the file that it names."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    try:
        answer: dict[str, Any] = {
            "rows": elsewhere(asked["module"], asked["file"], bytes.fromhex(asked["pickle"]), asked["seed"])
        }
    except Exception as error:  # a stranger's code may raise anything at all
        answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    with open(asked["answer"], "w", encoding="utf-8", errors="surrogatepass") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
