"""Trackers that are right, and ones with a single fault each."""

import csv
import json
import os
import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass
class Right:
    """One JSON object a number, appended in a folder of its own."""

    rlhf_api: ClassVar[int] = 1

    name: str = "numbers.jsonl"

    def start(self, folder: Path) -> None:
        (folder / "mine").mkdir(exist_ok=True)
        self._path = folder / "mine" / self.name

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        with open(self._path, "a") as file:
            for name, value in metrics.items():
                file.write(json.dumps([step, phase, name, value]) + "\n")

    def close(self) -> None:
        pass


@dataclass
class Database(Right):
    """Right: a table that is kept open; what a resumed run repeats is replaced."""

    def start(self, folder: Path) -> None:
        self._table = sqlite3.connect(folder / "numbers.sqlite")
        self._table.execute("CREATE TABLE IF NOT EXISTS numbers (step, phase, name, value)")
        self._last = None

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        if self._last is None:
            self._table.execute("DELETE FROM numbers WHERE step >= ?", (step,))
        self._last = step
        rows = [(step, phase, name, str(value)) for name, value in metrics.items()]
        self._table.executemany("INSERT INTO numbers VALUES (?, ?, ?, ?)", rows)
        self._table.commit()

    def close(self) -> None:
        self._table.close()


@dataclass
class Remote(Right):
    """Right: writes nothing here."""

    def start(self, folder: Path) -> None:
        self._sent: list[Any] = []

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._sent.append((step, dict(metrics), phase))

    def close(self) -> None:
        self._sent.clear()


@dataclass
class EveryTenthStep(Right):
    """Right: by design only every tenth step."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        if step % 10 == 0:
            super().log(step, metrics, phase)


@dataclass
class Rewritten(Right):
    """Right: one JSON document, read again at the start, written whole at each row."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._rows = json.loads(self._path.read_text()) if self._path.exists() else []

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._rows.append([step, phase, metrics])
        self._path.write_text(json.dumps(self._rows))


RIGHT = [Right(), Database(), Remote(), EveryTenthStep(), Rewritten()]


@dataclass
class FileForEachMetric(Right):
    """A file is named after a metric, slashes and all."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        for name, value in metrics.items():
            with open(self._path.parent / f"{name}.txt", "a") as file:
                file.write(f"{step} {phase} {value}\n")


@dataclass
class TrainingAlone(Right):
    """Knows one phase."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        if phase != "train":
            raise ValueError(f"unknown phase {phase}")
        super().log(step, metrics, phase)


@dataclass
class FixedColumns(Right):
    """A CSV file, with the names of the first row."""

    extras: str = "raise"

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._names: list[str] = []

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        row = {"step": step, "phase": phase, **metrics}
        with open(self._path, "a", newline="") as file:
            first, self._names = not self._names, self._names or list(row)
            writer = csv.DictWriter(file, self._names, extrasaction=self.extras)
            if first:
                writer.writeheader()
            writer.writerow(row)


@dataclass
class FirstMetricNeeded(Right):
    """Takes the loss out of each row."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        print(max(metrics.values()))
        super().log(step, metrics, phase)


@dataclass
class StrictJson(Right):
    """NaN is refused."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        json.dumps(metrics, allow_nan=False)
        super().log(step, metrics, phase)


@dataclass
class WholeNumbersRounded(Right):
    """Formats each number as a fraction."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        ratios = {name: value.as_integer_ratio() for name, value in metrics.items()}
        super().log(step, {name: above / below for name, (above, below) in ratios.items()}, phase)


@dataclass
class Buffered(Right):
    """Writes every fifth row with those before it; close forgets the rest."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._rows: list[Any] = []

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._rows.append((step, dict(metrics), phase))
        if len(self._rows) == 5:
            for row in self._rows:
                super().log(*row)
            self._rows.clear()


@dataclass
class NeverFlushed(Right):
    """A file is kept open, and never closed."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._file = open(self._path, "a")  # noqa: SIM115

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._file.write(json.dumps([step, phase, metrics]) + "\n")


@dataclass
class OneRowAStep(Right):
    """Rows by step: an evaluation replaces the training row of its step."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._rows = json.loads(self._path.read_text()) if self._path.exists() else {}

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._rows[str(step)] = metrics
        self._path.write_text(json.dumps(self._rows))


@dataclass
class TakesOut(Right):
    """Takes what it needs out of the dict."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        metrics.pop("length", None)
        super().log(step, metrics, phase)


@dataclass
class PutsIn(Right):
    """Writes the step into the dict."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        metrics["step"] = step
        super().log(step, metrics, phase)


@dataclass
class OpenedByTheFirstRow(Right):
    """close() closes what was never opened."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._file = open(self._path, "a")  # noqa: SIM115
        self._file.close()
        super().log(step, metrics, phase)

    def close(self) -> None:
        self._file.close()


@dataclass
class ClosedOnce(Right):
    """close() forgets the path and needs it."""

    def close(self) -> None:
        assert self._path.parent.exists()
        del self._path


@dataclass
class NewFolder(Right):
    """start() makes a folder that must not be there."""

    def start(self, folder: Path) -> None:
        (folder / "mine").mkdir()
        super().start(folder)


@dataclass
class BeginsAnew(Right):
    """start() empties the file."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._path.write_text("")


@dataclass
class Locked(Right):
    """A lock that only close() takes away: a killed run is never resumed."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._lock = self._path.with_suffix(".lock")
        self._lock.touch(exist_ok=False)

    def close(self) -> None:
        self._lock.unlink(missing_ok=True)


@dataclass
class OneWriter(Right):
    """The path is kept in the class."""

    place: ClassVar[list[Path]] = []

    def start(self, folder: Path) -> None:
        super().start(folder)
        self.place[:] = [self._path]

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        self._path = self.place[0]
        super().log(step, metrics, phase)


@dataclass
class ClosesAll(Right):
    """close() closes all of the class."""

    running: ClassVar[set[int]] = set()

    def start(self, folder: Path) -> None:
        super().start(folder)
        self.running.add(id(self))

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        if id(self) not in self.running:
            raise RuntimeError("closed")
        super().log(step, metrics, phase)

    def close(self) -> None:
        self.running.clear()


@dataclass
class IntoTheRunsMetrics(Right):
    """Writes to the run's own metrics.jsonl."""

    def start(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"


@dataclass
class EmptiesTheFolder(Right):
    """Removes what lies in the folder before it begins: files that are not its own."""

    def start(self, folder: Path) -> None:
        for path in folder.glob("*.json"):
            path.unlink()
        super().start(folder)


@dataclass
class ChangesDirectory(Right):
    """Goes into the run's folder."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        os.chdir(folder)


@dataclass
class NamedByChance(Right):
    """A name from the global random numbers."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._path = self._path.with_name(f"{random.getrandbits(32)}.jsonl")
