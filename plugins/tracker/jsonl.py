"""One file of metrics for many runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass
class Jsonl:
    """Appends every row to a file of your choice, with the run's folder: a sweep's metrics in one place.

    Each run's own ``metrics.jsonl`` is written whatever trackers are chosen.
    """

    rlhf_api: ClassVar[int] = 1

    path: str = "runs/metrics.jsonl"  # rows of all runs are appended here

    def start(self, folder: Path) -> None:
        """Remember whose rows these are."""
        self._run = str(folder)
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        """One row, written at once."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"run": self._run, "step": step, "phase": phase, **metrics}) + "\n")

    def close(self) -> None:
        """Nothing is kept open."""
