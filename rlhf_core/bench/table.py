"""The table of ``rlhf bench run``, printed row by row: a heading a case, then its implementations.

Columns have fixed widths, for the rows to come are not known. With ``rich`` there is colour; without it, plain text.
"""

from typing import Any

from .results import Row
from .roofs import Roofs
from .shown import COLUMNS, against_copies, significant

WIDTHS = (14, 22, 7, 8, 8, 12, 7, 7, 15, 8, 13)

BUSY = 0.75
"""The load a CPU from which timings are worth little: a parallel op waits for a thread that has no core."""

try:
    from rich.console import Console
    from rich.text import Text

    RICH = True
except ImportError:  # a bare GPU machine: torch and little else
    RICH = False


class Table:
    """Where rows are printed as they come."""

    def __init__(self) -> None:
        """On standard output."""
        self.case: tuple[str, ...] = ()
        self.console = Console(highlight=False, soft_wrap=True) if RICH else None

    def head(self, machine: dict[str, Any]) -> None:
        """Where it is measured."""
        versions = machine["versions"]
        parts = [machine["device"], f"{machine['threads']} threads", f"torch {versions['torch']}"]
        parts += [f"triton {versions['triton']}"] if versions["triton"] and machine["device_type"] == "cuda" else []
        parts += [f"driver {machine['driver']}"] if machine["driver"] else []
        self.line(", ".join(parts), "bold")
        load, cpus = machine["load"] or 0.0, machine["cpus"] or 1
        if machine["device_type"] == "cpu" and load > BUSY * cpus:
            self.line(f"busy: a load of {load:.1f} on {cpus} CPUs; threads will wait for others' work", "red")

    def roofs(self, dtype: str, roofs: Roofs) -> None:
        """What the machine can do."""
        self.line(
            f"roofs: copy {significant(roofs.dram / 1e9)} GB/s, {dtype} GEMM {significant(roofs.gemm / 1e12)} TFLOP/s"
        )

    def row(self, row: Row) -> None:
        """One row, under its case."""
        if row.case != self.case:
            self.case = row.case
            copied = row.roof and row.bound == "bytes"
            roof = f"; copy of as many bytes {significant((row.roof or 0) / 1e9)} GB/s" if copied else ""
            self.line(f"\n{row.op} {row.shown_shape} {row.dtype} {row.mode}{roof}", "bold")
            if row.noisy:
                self.line(f"NOISY: the machine was busy, that copy took {row.noise:.0f} times as long as it can", "red")
            self.line(_cells(list(COLUMNS)), "dim")
        text = _cells([cell(row) for cell in COLUMNS.values()])
        if row.status == "failed":
            self.line(f"{row.impl:<{WIDTHS[0]}}FAILED: {row.reason:.200}", "red")
        else:
            self.line(text, "green" if row.kind == "ours" else "")
        if shared := against_copies(row):
            self.line(f"{'':<{WIDTHS[0]}}{shared}", "green")

    def absent(self, entries: list[dict[str, str]]) -> None:
        """Which implementations were not there, and why; once each."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for entry in entries:
            reasons.setdefault((entry["impl"], entry["reason"]), []).append(entry["op"])
        if reasons:
            self.line("\nnot measured", "bold")
        for (name, reason), ops in reasons.items():
            self.line(f"{name:<{WIDTHS[0]}}{reason} ({', '.join(ops)})")

    def line(self, text: str, style: str = "") -> None:
        """One line."""
        if self.console:
            self.console.print(Text(text, style=style))
        else:
            print(text, flush=True)


def _cells(cells: list[str]) -> str:
    first, *others = zip(cells, WIDTHS, strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f"  {cell:>{width}}" for cell, width in others)
