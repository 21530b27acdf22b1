"""``rlhf check``: the conformance kit on the command line, on plugins chosen as ``rlhf train`` chooses them."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import UserError
from ..hydra_glue import compose_train
from ..plugins import EXTENSIONS, KINDS, did_you_mean
from ..run import chosen, device_of
from .check import Check, Outcome
from .checks import checks_of
from .runner import run_checks


def main(argv: list[str]) -> int:
    """``rlhf check KIND=NAME [override …] [--only CHECK] [--json]``.

    Returns:
        1 where a check failed, else 0.

    Raises:
        UserError: nothing is chosen, no such plugin, setting or check.
    """
    only, words = _taken(argv, "--only")
    as_json, words = "--json" in words, [word for word in words if word != "--json"]
    if unknown := [word for word in words if word.startswith("-")]:
        raise UserError(f"{unknown[0]}: no such option of rlhf check; there are --only CHECK and --json")
    rows: list[dict[str, str]] = []
    for choice, kind, plugin, device in _chosen(words):
        checks = _named(checks_of(kind), only)
        outcomes = run_checks(plugin, kind, device, checks)
        rows += [_row(choice, outcome) for outcome in (outcomes if as_json else _told(choice, outcomes))]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    return int(any(row["status"] == "failed" for row in rows))


def _told(choice: str, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The outcomes, each printed as it comes."""
    print(choice)
    names: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for outcome in outcomes:
        print("  " + str(outcome).replace("\n", "\n  "), flush=True)
        names[outcome.status].append(outcome.check.name)
        yield outcome
    print(", ".join(f"{len(found)} {status}" for status, found in names.items()))
    if names["failed"]:
        print(f"failed: {', '.join(names['failed'])}")


def _taken(argv: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The values of an option that may be given several times, and the other words."""
    values, words, rest = [], [], iter(argv)
    for word in rest:
        if word == option:
            values.append(next(rest, ""))
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            words.append(word)
    return values, words


def _chosen(words: list[str]) -> Iterator[tuple[str, str, Any, str]]:
    """What was typed, kind, plugin and device, of each plugin that is named."""
    kinds = [kind for kind in EXTENSIONS if any(word.lstrip("+").startswith(f"{kind}=") for word in words)]
    if not kinds:
        wrong = next((word for word in words if "=" in word), "nothing")
        near = did_you_mean(wrong.partition("=")[0], EXTENSIONS)
        raise UserError(f"check: {wrong} names no plugin; say it as KIND=NAME, e.g. reward=sentiment{near}")
    benchmarks = [word for word in words if word.startswith("benchmark=")]
    for word in benchmarks:
        yield word, "benchmark", plugins.load("benchmark", word.partition("=")[2])(), "cpu"
    if kinds == ["benchmark"]:
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = compose_train([word for word in words if word not in benchmarks], Path(folder)).settings
    device = str(device_of(settings.device)) if settings.device != "auto" else "cpu"
    for kind in kinds:
        if kind in KINDS and getattr(settings, kind) is None:
            raise UserError(f"{kind}=null: there is nothing to check")
    for kind, plugin in chosen(settings):
        if kind not in kinds:
            continue
        info = plugins.loaded(type(plugin))
        yield f"{kind}={info.name if info else type(plugin).__name__}", kind, plugin, device


def _named(checks: Sequence[Check], only: Sequence[str]) -> list[Check]:
    names = [check.name for check in checks]
    for name in only:
        if name not in names:
            near = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
            raise UserError(f"--only {name}: no such check{near}")
    return [check for check in checks if not only or check.name in only]


def _row(choice: str, outcome: Outcome) -> dict[str, str]:
    told = {"expected": outcome.expected, "came": outcome.came, "cure": outcome.cure, "reason": outcome.reason}
    return {"plugin": choice, "check": outcome.check.name, "status": outcome.status, "why": outcome.check.why} | told
