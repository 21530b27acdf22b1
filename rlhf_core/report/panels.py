"""A panel is one chart with its title, what to read from it, and its key.

Where there is nothing to draw it is a plain sentence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rlhf_core.report import charts
from rlhf_core.report.charts import Level, Line, Row
from rlhf_core.report.read import Run, Series


@dataclass(frozen=True)
class Key:
    """One entry of a chart's key; `mark` names how the style sheet draws it."""

    label: str
    colour: str
    mark: str = "line"
    dash: str = "solid"


BATCHES = Key("training batches, with running mean", "muted", "faint")
HELD_OUT = Key("held-out", "ink", "dots")


@dataclass(frozen=True)
class Panel:
    """One figure of the page; `figure` is plotly JSON, or None, and then `empty` says why."""

    title: str
    caption: str
    figure: str | None = None
    empty: str = ""
    key: list[Key] = field(default_factory=list)
    wide: bool = False
    tall: bool = False


@dataclass(frozen=True)
class Wanted:
    """A metric to draw as one row: its name, its words with the unit, the colour of its concept."""

    metric: str
    title: str
    colour: str
    levels: list[Level] = field(default_factory=list)
    band: tuple[float, float] | None = None


def line(series: Series, name: str, colour: str, mark: charts.Mark, scale: float = 1.0) -> Line:
    """A series against its steps."""
    values = [None if value is None else value * scale for value in series.values]
    return Line(name, [float(step) for step in series.steps], values, colour, mark)


def both(run: Run, metric: str, colour: str, scale: float = 1.0) -> list[Line]:
    """A metric of the training batches, and of the held-out data over it."""
    lines = []
    if metric in run.train:
        lines.append(line(run.train[metric], "training batches", colour, "faint", scale))
    if metric in run.held_out:
        lines.append(line(run.held_out[metric], "held-out", colour, "dots", scale))
    return lines


def rows(run: Run, wanted: Iterable[Wanted]) -> list[Row]:
    """Those of the wanted metrics that the run has."""
    found = [(want, both(run, want.metric, want.colour)) for want in wanted]
    return [Row(want.title, lines, want.levels, want.band, want.colour) for want, lines in found if lines]


def panel(run: Run, title: str, caption: str, wanted: list[Wanted]) -> Panel:
    """The wanted metrics over the steps, one above the other."""
    found = rows(run, wanted)
    if not found:
        names = " or ".join(want.metric for want in wanted)
        return Panel(title, caption, empty=f"No {names} in this run's metrics{_so_far(run)}.")
    key = key_of(run, [want.metric for want in wanted])
    return Panel(title, caption, charts.stack(found), key=key, tall=len(found) > 2)


def key_of(run: Run, metrics: list[str]) -> list[Key]:
    """Which of the two marks are in a chart of these metrics."""
    seen = [(BATCHES, run.train), (HELD_OUT, run.held_out)]
    return [key for key, columns in seen if any(metric in columns for metric in metrics)]


def drawn(panels: Iterable[Panel]) -> list[Panel]:
    """Those that have something to draw."""
    return [panel for panel in panels if panel.figure]


def moves(run: Run, metric: str) -> bool:
    """Whether a metric of the training batches is ever more than rounding away from 0."""
    return any(abs(value) > 1e-6 for value in run.train.get(metric, Series()).values if value is not None)


def losses(run: Run, unit: str) -> Panel:
    """Training and held-out loss."""
    return panel(run, "Loss", f"{unit}; lower is better.", [Wanted("loss", "", "loss")])


def language_model(run: Run) -> list[Panel]:
    """Panels of a stage that learns to predict text."""
    schedule = [Wanted("lr", "learning rate", "update"), Wanted("grad_norm", "gradient norm", "update")]
    caption = "The learning rate as scheduled, and the gradient before clipping."
    return [losses(run, "Nats a token"), panel(run, "Optimiser", caption, schedule)]


def others(run: Run, drawn: Iterable[str]) -> list[Panel]:
    """A small panel for every metric that no panel above shows."""
    known = set(drawn)
    names = [name for name in dict.fromkeys((*run.held_out, *run.train)) if name not in known]
    return [panel(run, name, "", [Wanted(name, "", "update")]) for name in names]


def number_at(config: Mapping[str, object], ends: tuple[str, ...]) -> float | None:
    """The first number in a flat config whose key ends so."""
    for key, value in config.items():
        if key.rpartition(".")[2] in ends and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _so_far(run: Run) -> str:
    return "" if run.finished else " so far"
