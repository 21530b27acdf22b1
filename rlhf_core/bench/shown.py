"""Numbers of a row as people read them; the same in the terminal, in Markdown and in HTML."""

from collections.abc import Callable

from .results import Row

NONE = "–"

Cell = Callable[[Row], str]


def significant(value: float, digits: int = 3) -> str:
    """``value`` with so many significant digits, and no exponent from a thousandth to a million."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if size >= 1e-3 else f"{value:.1e}"


def _median(row: Row) -> str:
    if row.median_ms is None or row.p20_ms is None or row.p80_ms is None:
        return "FAILED" if row.status == "failed" else NONE
    return f"{significant(row.median_ms)} ({significant(row.p20_ms)}–{significant(row.p80_ms)})"


def _peak(row: Row) -> str:
    return NONE if row.peak_bytes is None else significant(row.peak_bytes / 2**20)


def _rate(row: Row) -> str:
    if row.rate is None:
        return NONE
    return f"{significant(row.rate / 1e12)} TF/s" if row.bound == "flops" else f"{significant(row.rate / 1e9)} GB/s"


def _share(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{significant(ratio)}×"


def against_copies(row: Row) -> str:
    """Of one of ours where prompts are shared: what sharing gave, and the share of it that the saved work promises."""
    if row.kind != "ours" or row.copied is None or row.speedup_copies is None:
        return ""
    share = row.speedup_copies / row.copied
    return f"{_times(row.speedup_copies)} copies of the prompt, {_share(share)} of the {_times(row.copied)} work saved"


def _error(row: Row) -> str:
    return NONE if row.error is None else f"{row.error:.0e} ({row.eager_error:.0e})"


def _first(row: Row) -> str:
    cached = " cached" if row.from_disk else ""
    return NONE if row.first_ms is None else f"{significant(row.first_ms / 1e3, 2)} s{cached}"


COLUMNS: dict[str, Cell] = {
    "implementation": lambda row: row.impl,
    "median ms (p20–p80)": _median,
    "best": lambda row: NONE if row.best_ms is None else significant(row.best_ms),
    "× eager": lambda row: _times(row.speedup),
    "peak MiB": _peak,
    "rate": _rate,
    "of roof": lambda row: _share(row.roof_share),
    "of DRAM": lambda row: _share(row.dram_share),
    "error (eager's)": _error,
    "launches": lambda row: NONE if row.launches is None else str(row.launches),
    "first call": _first,
}
"""What stands in each column of a row."""
