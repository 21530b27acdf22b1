"""Values out of files that may be missing, cut short or damaged."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

Json = Mapping[str, object]


def text_lines(path: Path) -> list[str]:
    """The lines of a text file; none where there is no file."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def json_value(path: Path, notes: list[str]) -> object:
    """What a JSON file holds; None without a file, and with a note where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        notes.append(f"{path.name} cannot be read ({error.msg}, line {error.lineno}).")
        return None


def json_object(path: Path, notes: list[str]) -> Json:
    """As `json_value`, of a file that holds an object; empty where it does not."""
    content = json_value(path, notes)
    return content if isinstance(content, dict) else {}


def json_lines(path: Path, notes: list[str]) -> Iterator[Json]:
    """The objects of a file that holds one a line, as far as they are whole."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    damaged = 0
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            damaged += index < len(lines) - 1  # the last one, without its newline, is still being written
            continue
        if isinstance(row, dict):
            yield row
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''} left out.")


def text(value: object) -> str:
    """Anything as text; None is empty."""
    return "" if value is None else str(value)


def finite(value: object) -> float | None:
    """A number, or None where it is none, NaN or infinite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def finite_by_name(value: object) -> dict[str, float]:
    """The finite numbers of a mapping."""
    if not isinstance(value, Mapping):
        return {}
    found = {str(name): finite(item) for name, item in value.items()}
    return {name: item for name, item in found.items() if item is not None}


def finite_list(value: object) -> list[float]:
    """A list of numbers, 0 for what is none, so that places keep their meaning."""
    return [finite(item) or 0.0 for item in value] if isinstance(value, list) else []
