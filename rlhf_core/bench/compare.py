"""``rlhf bench compare A B``: did anything get slower?

Two runs may come from two machines, or from one in two moods; so what is judged is each row's time in units of
eager's in the same run. The plain ratio is shown beside it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import UserError
from .results import Results, Row, read
from .shown import NONE, significant


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"bench compare: {message}; see rlhf bench --help")


@dataclass(frozen=True)
class Change:
    """One row in both runs; ratios above 1 are slower."""

    before: Row
    after: Row

    @property
    def plain(self) -> float | None:
        """Median through median."""
        if self.before.median_ms is None or self.after.median_ms is None:
            return None
        return self.after.median_ms / self.before.median_ms

    @property
    def normalised(self) -> float | None:
        """The same, each in units of eager's median of its run; None where a run has no eager."""
        if not self.before.speedup or not self.after.speedup:
            return None
        return self.before.speedup / self.after.speedup

    @property
    def judged(self) -> float | None:
        """What counts."""
        return self.plain if self.normalised is None else self.normalised

    @property
    def broke(self) -> bool:
        """It was right before and is wrong now."""
        return self.before.status == "ok" and self.after.status != "ok"


def main(words: Sequence[str]) -> int:
    """``rlhf bench compare A B [--fail-over 10%]``; 1 where one of ours got slower by more than that, or wrong."""
    parser = _Parser(prog="rlhf bench compare", add_help=False, allow_abbrev=False)
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    parser.add_argument("--fail-over", default="10%", metavar="PERCENT")
    given = parser.parse_args(words)
    limit = percentage(given.fail_over)
    before, after = read(given.before), read(given.after)
    found = changes(before, after)
    if not found:
        raise UserError(f"{given.after}: has no row in common with {given.before}; compare runs of the same cases")
    print("\n".join(_table(found, before, after)))
    slower = [change for change in found if change.after.kind == "ours" and (change.judged or 0) > 1 + limit]
    broken = [change for change in found if change.after.kind == "ours" and change.broke]
    for change in broken:
        print(f"WRONG NOW: {_name(change.after)}: {change.after.reason}")
    for change in slower:
        print(f"SLOWER: {_name(change.after)}: {significant(change.judged or 0)}× (limit {significant(1 + limit)}×)")
    if not slower and not broken:
        print(f"none of ours got slower by more than {given.fail_over}")
    return 1 if slower or broken else 0


def percentage(text: str) -> float:
    """``10%`` or ``10`` as 0.1."""
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"--fail-over {text}: expected a percentage, such as 10%")
    return value


def changes(before: Results, after: Results) -> list[Change]:
    """The rows that both runs have, in the order of the second."""
    known = {(*row.case, row.impl): row for row in before.rows}
    return [Change(known[*row.case, row.impl], row) for row in after.rows if (*row.case, row.impl) in known]


def _table(found: Sequence[Change], before: Results, after: Results) -> list[str]:
    head = ("row", "A ms", "B ms", "B/A", "B/A by eager's")
    cells = [
        (
            _name(change.after),
            _shown(change.before.median_ms),
            _shown(change.after.median_ms) if change.after.status == "ok" else "FAILED",
            _shown(change.plain),
            _shown(change.normalised),
        )
        for change in found
    ]
    width = max(len(row[0]) for row in [head, *cells])
    lines = [f"{name:{width}}" + "".join(f"  {cell:>14}" for cell in rest) for name, *rest in [head, *cells]]
    missing = _names(before) - _names(after)
    lines += [f"only in A: {name}" for name in sorted(missing)]
    return [
        f"A: {before.machine['device']}, {before.created}",
        f"B: {after.machine['device']}, {after.created}",
        *lines,
    ]


def _names(results: Results) -> set[str]:
    return {_name(row) for row in results.rows}


def _name(row: Row) -> str:
    return f"{row.op} {row.shown_shape} {row.dtype} {row.device} {row.mode} {row.impl}"


def _shown(value: float | None) -> str:
    return NONE if value is None else significant(value)
