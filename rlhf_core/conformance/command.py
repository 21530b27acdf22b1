"""The command line: which implementations and checks, what is printed, the exit code."""

import argparse
import json
from pathlib import Path
from typing import NoReturn

from ..errors import UserError
from ..plugins import did_you_mean
from .check import Check
from .checks import CHECKS, GROUPS
from .golden import describe
from .implementations import default, find
from .page import show
from .record import record
from .run import Result, ask


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"conformance: {message}; rlhf conformance --help says more")


def parser() -> argparse.ArgumentParser:
    """The options; ``help.py`` has their text, so that it needs no torch."""
    found = _Parser(prog="rlhf conformance", add_help=False, allow_abbrev=False)
    found.add_argument("--impl", action="append", default=[])
    found.add_argument("--check", action="append", default=[])
    found.add_argument("--json", type=Path)
    found.add_argument("--show", action="append", default=[])
    found.add_argument("--strict", action="store_true")
    return found


def main(argv: list[str]) -> int:
    """``rlhf conformance …``.

    Returns:
        1 where one of ours disagrees, or with --strict anyone; else 0.

    Raises:
        UserError: an unknown option, implementation or check, or a file that cannot be written.
    """
    given = parser().parse_args(argv)
    if given.show:
        print("\n\n".join("\n".join(describe(check)) for check in chosen(given.show)))
        return 0
    checks = chosen(given.check)
    implementations = [find(name) for name in dict.fromkeys(given.impl)] if given.impl else default()
    _writable(given.json)
    results = [ask(implementation, check) for check in checks for implementation in implementations]
    show(implementations, checks, results)
    if given.json:
        text = json.dumps(record(implementations, checks, results), indent=1, ensure_ascii=False)
        given.json.write_text(text + "\n", encoding="utf-8")
    return int(any(result.wrong and (given.strict or ours(result)) for result in results))


def ours(result: Result) -> bool:
    """Whether it is about our kernels."""
    return result.implementation.partition(".")[0] == "ours"


def chosen(names: list[str]) -> list[Check]:
    """The checks of these groups, or single ones as group.name; all where none is named.

    Raises:
        UserError: there is no such group or check.
    """
    known = [*GROUPS, *(check.id for check in CHECKS)]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known) or f"; groups: {', '.join(GROUPS)}"
            raise UserError(f"{name}: no such check{near}")
    return [check for check in CHECKS if not names or check.group in names or check.id in names]


def _writable(file: Path | None) -> None:
    """Before the work, not after it."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise UserError(f"--json {file}: cannot be written; give a file in a folder that exists")
