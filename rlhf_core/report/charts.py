"""Figures as JSON, for the page's own script to draw. The only file that knows plotly.

A colour is the name of a CSS variable (`"reward"` is `var(--reward)`): the page's style sheet is the one home of
colours, and a chart follows the reader's light or dark setting.
"""

import json
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rlhf_core.report.text import number

Props = dict[str, object]
Mark = Literal["dots", "line", "faint", "mean", "cloud"]
SMOOTHED_FROM = 30
"""Points from which a faint line gets its running mean drawn over it: fewer can be read as they are."""
MOST_POINTS = 1000
"""Points of a noisy curve that are drawn; a chart is narrower than this in pixels."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Its mark is `dots` (a measured held-out point each), `line` (plain), `faint` (noisy: drawn thin under its running
    mean), `mean` (that running mean alone) or `cloud` (points of no order).
    """

    name: str
    x: list[float]
    y: list[float | None]
    colour: str
    mark: Mark = "line"
    labels: dict[int, str] = field(default_factory=dict)
    """Words beside the points at these indices."""
    hover: list[str] = field(default_factory=list)
    """Words for each point in its tooltip."""
    dash: str = "solid"


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    y: float
    label: str
    colour: str = "muted"


@dataclass(frozen=True)
class Row:
    """One panel of a stack; panels share the x axis."""

    title: str
    lines: list[Line]
    levels: list[Level] = field(default_factory=list)
    band: tuple[float, float] | None = None
    colour: str = "ink"


@dataclass(frozen=True)
class Dot:
    """One entry of a dot chart, with its 95 % interval where known."""

    label: str
    x: float
    colour: str
    low: float | None = None
    high: float | None = None


@dataclass
class _Sheet:
    """A figure as it is put together; plotly checks it once, when it is whole."""

    layout: Props
    traces: list[Props] = field(default_factory=list)
    shapes: list[Props] = field(default_factory=list)
    words: list[Props] = field(default_factory=list)

    def json(self) -> str:
        """The figure, safe inside a script element."""
        layout = self.layout | {"shapes": self.shapes, "annotations": self.words}
        content = go.Figure(self.traces, layout).to_plotly_json()
        content["layout"].pop("template", None)
        # Inside <script> the HTML parser looks for "</script" and "<!--" whatever the type: no "<" leaves here.
        return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def script() -> str:
    """plotly.js, whole."""
    return str(get_plotlyjs())


def stack(rows: list[Row], x_title: str = "step", marks: dict[float, str] | None = None, each: int = 130) -> str:
    """Line charts one above the other on one x axis.

    Args:
        rows: top first.
        x_title: what x is, with its unit.
        marks: vertical lines through all panels: where, and the words at the top.
        each: height of one panel in pixels.

    Returns:
        The figure as plotly JSON, safe inside a script element.
    """
    x_axis = _axis(title={"text": x_title, "standoff": 8}, anchor=f"y{len(rows)}".removesuffix("1"))
    sheet = _Sheet(_layout(max(300, 80 + each * len(rows)), top=44 if marks else 26) | {"xaxis": x_axis})
    for index, row in enumerate(rows):
        _panel(sheet, row, index, len(rows))
    for x, label in (marks or {}).items():
        stroke = {"color": _css("muted"), "dash": "dot"}
        sheet.shapes.append({"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": stroke})
        place = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "center", "yshift": 18}
        sheet.words.append(_words(label, "muted") | place)
    return sheet.json()


def dots(entries: list[Dot], start: float, x_title: str) -> str:
    """A dot for each entry, on a stem from `start` (what knowing nothing scores)."""
    names = _axis(autorange="reversed", showgrid=False, automargin=True)
    axes = {
        "xaxis": _axis(title={"text": x_title, "standoff": 8}),
        "yaxis": names | {"tickfont": {"size": 13, "color": _css("ink")}},
    }
    sheet = _Sheet(_layout(80 + 42 * len(entries), top=14, right=40) | axes | {"hovermode": "closest"})
    for entry in entries:
        stem = {"mode": "lines", "line": {"color": _css(entry.colour), "width": 2}, "opacity": 0.45}
        sheet.traces.append({"x": [start, entry.x], "y": [entry.label] * 2, "hoverinfo": "skip"} | stem)
    sheet.traces += [_dot(entry) for entry in entries]
    return sheet.json()


def _dot(entry: Dot) -> Props:
    interval = ""
    dot: Props = {"x": [entry.x], "y": [entry.label], "mode": "markers+text", "cliponaxis": False}
    if entry.low is not None and entry.high is not None:
        interval = f" ({number(entry.low)} to {number(entry.high)})"
        ends = {"array": [entry.high - entry.x], "arrayminus": [entry.x - entry.low], "color": _css(entry.colour)}
        dot["error_x"] = {"type": "data", "symmetric": False, "thickness": 2, "width": 6} | ends
    words = {"text": [f"<b>{number(entry.x)}</b>"], "textposition": "top center", "textfont": {"color": _css("ink")}}
    hover = f"{entry.label}: {number(entry.x)}{interval}<extra></extra>"
    return dot | words | {"marker": {"size": 12, "color": _css(entry.colour)}, "hovertemplate": hover}


def _panel(sheet: _Sheet, row: Row, index: int, count: int) -> None:
    gap = 0.32 / count if count > 1 else 0
    height = (1 - gap * (count - 1)) / count
    top = 1 - index * (height + gap)
    key = "yaxis" if index == 0 else f"yaxis{index + 1}"
    axis = "y" if index == 0 else f"y{index + 1}"
    domain = [max(0.0, top - height), top]
    sheet.layout[key] = _axis(domain=domain, anchor="x", automargin=True, range=_flat(row))
    if row.title:
        place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        sheet.words.append(_words(row.title, row.colour, bold=True) | place)
    if row.band:
        corners = {"x0": 0, "x1": 1, "xref": "paper", "y0": row.band[0], "y1": row.band[1], "yref": axis}
        sheet.shapes.append(
            corners | {"type": "rect", "fillcolor": _css("band"), "line": {"width": 0}, "layer": "below"}
        )
    for level in row.levels:
        _level(sheet, level, axis, next((line.x[0] for line in row.lines if line.x), 0.0))
    for line in row.lines:
        sheet.traces += [trace | {"yaxis": axis} for trace in _traces(line)]


def _flat(row: Row) -> list[float] | None:
    """The range of an axis on which nothing moves: left alone, plotly would magnify the last bits of a float."""
    values = [value for line in row.lines for value in line.y if value is not None] + [level.y for level in row.levels]
    if not values or max(values) - min(values) > 1e-6 * max(map(abs, values)):
        return None
    middle, half = values[0], abs(values[0]) / 2 or 1.0
    return [middle - half, middle + half]


def _level(sheet: _Sheet, level: Level, axis: str, start: float) -> None:
    stroke = {"color": _css(level.colour), "width": 1.5, "dash": "dash"}
    # A shape does not widen its axis; an invisible point does.
    unseen = {"hoverinfo": "skip", "mode": "markers", "opacity": 0}
    sheet.traces.append({"x": [start], "y": [level.y], "yaxis": axis} | unseen)
    ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": level.y, "y1": level.y, "yref": axis}
    sheet.shapes.append(ends | {"type": "line", "line": stroke})
    place = {"x": 1, "xref": "paper", "y": level.y, "yref": axis, "xanchor": "right", "yanchor": "bottom"}
    sheet.words.append(_words(level.label, level.colour) | place)


def _traces(line: Line) -> list[Props]:
    stroke: Props = {"color": _css(line.colour), "dash": line.dash}
    shown: Props = {"x": line.x, "y": line.y, "name": escape(line.name), "mode": "lines"}
    shown |= {"line": stroke | {"width": 2}, "hovertemplate": "%{y:.4~g}"}
    if line.hover:
        words = [escape(words) for words in line.hover]
        shown |= {"customdata": words, "hovertemplate": "%{y:.4~g} %{customdata}"}
    if line.mark in ("faint", "mean") and len(line.x) >= SMOOTHED_FROM:
        return _with_mean(shown, line, stroke)[-1 if line.mark == "mean" else 0 :]
    if line.mark == "faint":
        return [shown | {"line": stroke | {"width": 1.5}, "opacity": 0.6}]
    if line.mark == "cloud":
        return [shown | {"mode": "markers", "marker": {"size": 4, "color": _css(line.colour)}, "opacity": 0.35}]
    if line.mark == "dots":
        shown |= {"mode": "lines+markers", "marker": {"size": 6, "color": _css(line.colour)}}
    if line.labels:
        words = [escape(line.labels.get(index, "")) for index in range(len(line.x))]
        font = {"size": 11, "color": _css("muted")}
        places = ["bottom center" if index else "top center" for index in range(len(line.x))]
        shown |= {"mode": "lines+markers+text", "text": words, "textposition": places, "textfont": font}
        shown |= {"cliponaxis": False}
    return [shown]


def _with_mean(shown: Props, line: Line, stroke: Props) -> list[Props]:
    """The raw curve, thinned to what a screen can show, under its centred running mean."""
    stride = -(-len(line.x) // MOST_POINTS)
    mean = _running_mean(line.y, max(2, len(line.y) // 40))
    raw = {"y": line.y[::stride], "x": line.x[::stride], "line": stroke | {"width": 1}, "opacity": 0.35}
    over = {"y": mean[::stride], "x": line.x[::stride], "line": stroke | {"width": 1.5}, "opacity": 0.9}
    silent = {"hoverinfo": "skip", "hovertemplate": None} if line.mark == "faint" else {}
    return [shown | raw, shown | over | silent]


def _running_mean(values: list[float | None], reach: int) -> list[float | None]:
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    mean: list[float | None] = []
    for index in range(len(values)):
        low, high = max(0, index - reach), min(len(values), index + reach + 1)
        seen = counts[high] - counts[low]
        mean.append((sums[high] - sums[low]) / seen if seen else None)
    return mean


def _words(text: str, colour: str, bold: bool = False) -> Props:
    shown = f"<b>{escape(text)}</b>" if bold else escape(text)
    return {"text": shown, "showarrow": False, "font": {"size": 12 if bold else 11, "color": _css(colour)}}


def _css(colour: str) -> str:
    return f"var(--{colour})"


def _axis(**more: object) -> Props:
    rules = {
        "gridcolor": _css("grid"),
        "linecolor": _css("rule"),
        "zeroline": False,
        "ticks": "",
        "nticks": 6,
        "exponentformat": "power",
    }
    return rules | {"tickfont": {"size": 11, "color": _css("muted")}} | more


def _layout(height: int, top: int, right: int = 14) -> Props:
    clear = "rgba(0,0,0,0)"
    return {
        "height": height,
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "margin": {"l": 8, "r": right, "t": top, "b": 44, "pad": 4},
        "font": {"size": 12, "color": _css("muted")},
        "hoverlabel": {"bgcolor": _css("surface"), "bordercolor": _css("rule"), "font": {"color": _css("ink")}},
    }
