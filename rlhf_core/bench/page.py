"""The HTML page of benchmark results: a section an op, with its charts over size and its rows."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..report.charts import Level, Line, stack
from ..report.charts import Row as Chart
from ..report.page import render
from ..report.panels import Key, Panel
from .report import where
from .results import Results, Row
from .shown import COLUMNS

COLOURS = [f"run-{number}" for number in range(1, 9)]


@dataclass(frozen=True)
class Table:
    """The rows of one case: a heading, and a list of cells a row; ``ours`` and ``failed`` are looks."""

    title: str
    rows: list[tuple[list[str], str, str]]


@dataclass(frozen=True)
class Section:
    """One op on one device, in one dtype and mode."""

    title: str
    panels: list[Panel]
    tables: list[Table]


def page(found: Sequence[Results]) -> str:
    """The page, whole: it loads nothing."""
    sections = [section for results in found for section in _sections(results)]
    facts = [("Measured" if len(found) == 1 else f"Run {n}", where(results)) for n, results in enumerate(found, 1)]
    absent = [f"{entry['op']}: {entry['impl']} ({entry['reason']})" for results in found for entry in results.absent]
    return render(
        "bench.html.j2",
        title="Benchmark",
        facts=facts,
        sections=sections,
        columns=list(COLUMNS),
        absent=list(dict.fromkeys(absent)),
    )


def _sections(results: Results) -> list[Section]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.op, row.dtype, row.mode, row.lengths), []).append(row)
    device = results.machine["device"]
    return [
        Section(f"{rows[0].op}, {rows[0].dtype}, {rows[0].mode}, {device}", _panels(rows), _tables(rows))
        for rows in groups.values()
    ]


def _tables(rows: Sequence[Row]) -> list[Table]:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.shown_shape, []).append(row)
    return [
        Table(shape + " (noisy: the machine was busy)" * any(row.noisy for row in members), [*map(_cells, members)])
        for shape, members in cases.items()
    ]


def _cells(row: Row) -> tuple[list[str], str, str]:
    return [cell(row) for cell in COLUMNS.values()], row.kind, row.reason


def _panels(rows: Sequence[Row]) -> list[Panel]:
    names = list(dict.fromkeys(row.impl for row in rows))
    colours = dict(zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False))
    key = [Key(name, colour, "dots") for name, colour in colours.items()]
    flops = any(row.bound == "flops" for row in rows)
    unit, scale = ("TFLOP/s", 1e12) if flops else ("GB/s", 1e9)

    def lines(value: Callable[[Row], float | None]) -> list[Line]:
        return [_line(name, [row for row in rows if row.impl == name], value, colours[name]) for name in names]

    # Every row of a case has the same roof; one implementation's give the line.
    whole = next((name for name in names if all(row.roof for row in rows if row.impl == name)), None)
    of_roof = [row for row in rows if row.impl == whole]
    roof = _line("roof", of_roof, lambda row: (row.roof or 0) / scale, "ink")
    dram = next((row.dram_share and row.rate and row.rate / row.dram_share for row in rows if row.rate), None)
    levels = [Level(dram / scale, "copy in DRAM", "muted")] if dram and not flops else []
    roofs = [Key("roof: a copy of as many bytes" if not flops else "roof: GEMM", "ink", "dots", "dash")]
    return [
        Panel(
            "Time", "Median milliseconds of a call over size; lower is better.", key=key,
            figure=_logarithmic(stack([Chart("ms", lines(lambda row: row.median_ms))], "values", each=300)),
        ),
        Panel(
            "Memory", "Peak MiB above the inputs over size; lower is better.", key=key,
            figure=_logarithmic(stack([Chart("MiB", lines(_mebibytes))], "values", each=300)),
        ),
        Panel(
            "Roofline", f"The least work of the op, through the time it took ({unit}), below what the machine can do.",
            key=[*key, *roofs], wide=True,
            figure=_logarithmic(
                stack(
                    [Chart(unit, [*lines(lambda row: row.rate and row.rate / scale), _dashed(roof)], levels)],
                    "values", each=320,
                )
            ),
        ),
    ]  # fmt: skip


def _line(name: str, rows: Sequence[Row], value: Callable[[Row], float | None], colour: str) -> Line:
    points = sorted((row.tokens, row.shown_shape, value(row)) for row in rows if value(row))
    sizes, shapes, values = [float(size) for size, _, _ in points], [shape for _, shape, _ in points], points
    return Line(name, sizes, [y for _, _, y in values], colour, "dots", hover=[f"{name} {shape}" for shape in shapes])


def _dashed(line: Line) -> Line:
    return Line(line.name, line.x, line.y, line.colour, "dots", hover=line.hover, dash="dash")


def _mebibytes(row: Row) -> float | None:
    return row.peak_bytes / 2**20 if row.peak_bytes else None


def _logarithmic(figure: str) -> str:
    """The figure with both axes logarithmic: sizes and times span decades."""
    content = json.loads(figure)
    layout = content["layout"]
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"type": "log", "dtick": 1, "nticks": None, "range": None}
    layout["hovermode"] = "closest"
    for shape in layout.get("shapes", ()):  # plotly takes the y of a shape as it is, and that of an annotation as a log
        shape["layer"] = "below"
    for words in layout.get("annotations", ()):
        if words.get("yref") == "y" and words["y"] > 0:
            words["y"] = math.log10(words["y"])
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
