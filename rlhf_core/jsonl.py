"""JSON lines: one object a line, appended as a run goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonLines:
    """A growing file of rows that carry a ``step``."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``."""
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one row at once, so that a killed run loses none."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole rows; a last line cut short by a kill is passed over."""
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def rewind(self, step: int) -> None:
        """Forget every row after ``step``: a resumed run writes them again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(self.path)
