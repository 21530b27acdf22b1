"""What is printed: a table of checks by implementations, each disagreement, and what is not offered."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .check import Check
from .golden import inputs, numbers
from .run import Result
from .signatures import Implementation

STYLES = {"agrees": "green", "differs": "red", "raises": "red", "not offered": "dim"}
WIDE = 200
"""Columns of what is not a terminal: nothing is cut in a file."""


def show(implementations: list[Implementation], checks: list[Check], results: list[Result]) -> None:
    """On standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    console.print(_table(implementations, checks, results))
    console.print("* where frameworks may differ and be right: rlhf conformance --show CHECK says what the choice is\n")
    for check in checks:
        wrong = [result for result in results if result.check is check and result.wrong]
        if wrong:
            _print(console, disagreement(check, wrong, implementations))
    _print(console, _summary(implementations, results))


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _table(implementations: list[Implementation], checks: list[Check], results: list[Result]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("check", no_wrap=True)
    for implementation in implementations:
        table.add_column(f"{implementation.name}\n{implementation.version}", no_wrap=True)
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row(Text(group, "bold"))
        row = [result for result in results if result.check is check]
        table.add_row(f"  {check.name}{'*' if check.choice else ''}", *(_cell(result) for result in row))
    return table


def _cell(result: Result) -> Text:
    return Text(verdict(result), STYLES[result.status])


def verdict(result: Result) -> str:
    """A word, and how far off."""
    if result.status != "differs" or result.difference is None:
        return result.status
    return f"DIFFERS {'NaN or Inf' if math.isinf(result.difference) else f'{result.difference:.2g}'}"


def disagreement(check: Check, wrong: list[Result], implementations: list[Implementation]) -> Iterator[str]:
    """What was expected, what came, and the golden vector: enough for a report to who wrote it."""
    calls = {one.name: (one.version, one.calls.get(check.asked, "")) for one in implementations}
    yield f"{check.id}: {check.asserts}  [{check.source}]"
    yield f"  why it matters  {check.why}"
    if check.choice:
        yield f"  a choice        {check.choice}"
    yield from (f"    {line}" for line in inputs(check))
    for name, value in check.expected.items():
        yield f"  {name}"
        yield f"    {'expected':15} {numbers(value)}"
        yield from (f"    {one.implementation:15} {numbers(one.came[name])}" for one in wrong if one.came)
    for one in wrong:
        about, call = calls[one.implementation]
        said = f": {one.reason}" if one.reason else ""
        yield f"  {one.implementation} {about} {verdict(one)}{said}{f'  ({call})' if call else ''}".rstrip()
    yield ""


def _summary(implementations: list[Implementation], results: list[Result]) -> Iterator[str]:
    for implementation in implementations:
        own = [result for result in results if result.implementation == implementation.name]
        counts = Counter[str](result.status for result in own)
        yield f"{implementation.name}: {', '.join(f'{counts[s]} {s}' for s in STYLES if counts[s])}"
        reasons = Counter(result.reason for result in own if result.status == "not offered")
        yield from (f"  not offered ({count}): {reason}" for reason, count in reasons.items())
