"""A tracker: where metrics go beside ``metrics.jsonl``."""

from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """Receives every row of metrics.jsonl as it is written."""

    def start(self, folder: Path) -> None:
        """The run's folder is ``folder``; called again with the same folder when a run is resumed."""

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        """One row; ``phase`` is ``train`` or ``eval``."""

    def close(self) -> None:
        """The run has ended."""
