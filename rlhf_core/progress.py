"""How far a stage is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SHOWN = ("loss", "accuracy", "reward", "kl", "length")
"""The metrics worth a place on the line."""


class Progress:
    """A context manager; call ``advance`` after each step."""

    def __init__(self, name: str, total: int, done: int) -> None:
        """Of ``total`` steps ``done`` are done."""
        self.name, self.total, self.done = name, total, done
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[shown]}"), disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self.task = self.bar.add_task(name, total=total, completed=done, shown="")
        self.told = time.monotonic()

    def __enter__(self) -> "Progress":
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()

    def advance(self, metrics: dict[str, float]) -> None:
        """One more step is done."""
        self.done += 1
        shown = "  ".join(f"{name} {metrics[name]:.3g}" for name in SHOWN if name in metrics)
        self.bar.update(self.task, completed=self.done, shown=shown)
        if self.bar.disable and (time.monotonic() - self.told > 10 or self.done == self.total):
            self.told = time.monotonic()
            print(f"{self.name}  {self.done}/{self.total}  {shown}", flush=True)
