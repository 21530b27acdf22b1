"""Explanations on a terminal, wrapped to its width."""

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from .metric import Group, Metric
from .shown import facts

WIDEST = 120
"""Columns past which lines are hard to read."""


def show(groups: Iterable[Group], console: Console | None = None) -> None:
    """Print groups of metrics."""
    console = console or Console(highlight=False)
    width = min(console.width, WIDEST)
    for group in groups:
        console.print(Rule(Text(group.title, "bold"), align="left", style="dim"), width=width)
        console.print(Text(group.logged, "dim"), width=width)
        for metric in group.metrics:
            console.print(Padding(block(metric), (1, 0, 0, 2)), width=width)
        console.print()


def block(metric: Metric) -> Table:
    """One metric: its name, and a line a fact."""
    table = Table("", metric.title, box=None, padding=(0, 2, 0, 0), header_style="bold cyan")
    for label, text in facts(metric):
        table.add_row(Text(label, "dim"), Text(text))
    return table
