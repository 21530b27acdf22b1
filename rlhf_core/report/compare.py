"""Several runs on one page: what differs in their configs, and what came of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf_core.report import charts
from rlhf_core.report.charts import Line, Row
from rlhf_core.report.panels import Key, Panel, line
from rlhf_core.report.panels_answers import against_kl, cloud
from rlhf_core.report.read import Pipeline, Run, Series, flatten
from rlhf_core.report.text import duration, exact, number
from rlhf_core.report.tiles import interval

COLOURS = 8
"""Colours in the style sheet for runs; past them a curve is dashed as well."""
DASHES = ("solid", "dash", "dot", "dashdot")
ABSENT = "not set"
HIGHER = ("accuracy", "accuracy_all", "reward", "reward_gain_sd", "win_rate", "explained_variance")
LOWER = ("loss", "perplexity")


@dataclass(frozen=True)
class Entry:
    """One run in a comparison, with the look of its curves and its pipeline's folder."""

    label: str
    run: Run
    root: Path
    colour: str
    dash: str


@dataclass(frozen=True)
class Cell:
    """One number of a table row, with its 95 % interval where known; `best` among the row's."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Group:
    """Runs of one stage (or one algorithm), compared."""

    title: str
    entries: list[Entry]
    differing: dict[str, list[str]]
    results: dict[str, list[Cell]]
    panels: list[Panel] = field(default_factory=list)
    others: list[Panel] = field(default_factory=list)
    key: list[Key] = field(default_factory=list)


def groups(pipelines: list[Pipeline]) -> list[Group]:
    """Runs that can be compared: of one stage's name where all are pipelines, else of one algorithm."""
    labels = _labels(pipelines)
    staged = all(len(pipeline.stages) > 1 for pipeline in pipelines)
    members: dict[str, list[Entry]] = {}
    for index, (pipeline, label) in enumerate(zip(pipelines, labels, strict=True)):
        colour, dash = f"run-{index % COLOURS + 1}", DASHES[index // COLOURS % len(DASHES)]
        for stage in pipeline.stages:
            if stage.run:
                title = stage.name if staged else stage.run.algorithm or "runs"
                members.setdefault(title, []).append(Entry(label, stage.run, pipeline.folder, colour, dash))
    return [group(title, entries) for title, entries in members.items()]


def group(title: str, entries: list[Entry]) -> Group:
    """Tables and curves of runs that did the same thing."""
    measured = _names(entries, lambda run: run.held_out)
    held_out = [name for name in measured if "_start" not in name]  # the start model's numbers do not move
    train = [name for name in _names(entries, lambda run: run.train) if name not in held_out]
    panels = [frontier(entries)] if {"reward", "kl"} <= {*held_out, *train} else []
    panels += [_overlay(entries, name, lambda run: run.held_out, "dots") for name in held_out]
    others = [_overlay(entries, name, lambda run: run.train, "mean") for name in train]
    rows = differing(entries)
    return Group(title, entries, rows, results(entries), panels, others, _key(entries, rows))


def differing(entries: list[Entry]) -> dict[str, list[str]]:
    """Config keys whose values are not the same in all runs, each with a value a run."""
    flat = [{key: _value(value, entry) for key, value in flatten(entry.run.config).items()} for entry in entries]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = {key: [config.get(key, ABSENT) for config in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def results(entries: list[Entry]) -> dict[str, list[Cell]]:
    """Final held-out numbers, and the time they took."""
    rows = finals(entries, _names(entries, lambda run: run.final))
    return rows | {"time": [Cell(duration(entry.run.seconds)) for entry in entries]}


def finals(entries: list[Entry], names: Iterable[str]) -> dict[str, list[Cell]]:
    """Some final held-out numbers, the best of each marked where better has a direction."""
    rows = {}
    for name in names:
        values = [entry.run.final.get(name) for entry in entries]
        best = best_of(name, values)
        intervals = [interval(entry.run, name) for entry in entries]
        cells = zip(values, intervals, strict=True)
        rows[name] = [Cell(number(value), ends, value is not None and value == best) for value, ends in cells]
    return rows


def best_of(name: str, values: list[float | None]) -> float | None:
    """The best value, or None: better has no direction (KL, length), or the runs do not differ."""
    seen = [value for value in values if value is not None]
    if len(set(seen)) < 2:
        return None
    if name in LOWER:
        return min(seen)
    return max(seen) if name in HIGHER or name.startswith("judge/") else None


def frontier(entries: list[Entry], first: str = "reward", words: str = "proxy reward") -> Panel:
    """A metric, under these words, and each judge, against the KL it was bought with."""
    shown = words.removeprefix("proxy ")
    title = f"{shown[0].upper()}{shown[1:]} against KL"
    names = [first, *(name for name in _names(entries, lambda run: run.held_out) if name.startswith("judge/"))]
    rows = []
    for name in names:
        found = [_path(entry, name) for entry in entries]
        if lines := [path for path in found if path]:
            lines = [*_clouds(entries, name), *lines]
            rows.append(Row(words if name == first else f"judge: {name[6:]}", lines))
    if not rows:
        return Panel(title, "", empty=f"No {first} with its KL has been measured yet.", wide=True)
    caption = "At equal KL, higher is better. More of it bought with more KL is not by itself a better run."
    return Panel(title, caption, charts.stack(rows, "KL to the start model, nats a response", each=170), wide=True)


def _clouds(entries: list[Entry], name: str) -> list[Line]:
    return [replace(line, name=entry.label) for entry in entries for line in cloud(entry.run, name, entry.colour)]


def _path(entry: Entry, name: str) -> Line | None:
    columns = entry.run.held_out if "kl" in entry.run.held_out else entry.run.train
    found = against_kl(columns, name, entry.colour, entry.label)
    return found and replace(found, dash=entry.dash)


def _overlay(entries: list[Entry], name: str, columns: Callable[[Run], dict[str, Series]], mark: charts.Mark) -> Panel:
    found = [(entry, columns(entry.run)[name]) for entry in entries if name in columns(entry.run)]
    lines = [replace(line(series, entry.label, entry.colour, mark), dash=entry.dash) for entry, series in found]
    caption = "held-out" if mark == "dots" else "training batches, running mean"
    return Panel(name, caption, charts.stack([Row("", lines)]))


def _names(entries: list[Entry], columns: Callable[[Run], Mapping[str, object]]) -> list[str]:
    """Names in any of the runs. The ends of an interval are shown with its middle."""
    found = dict.fromkeys(name for entry in entries for name in columns(entry.run))
    return [name for name in found if name.removesuffix("_low").removesuffix("_high") not in found.keys() - {name}]


def _key(entries: list[Entry], rows: dict[str, list[str]]) -> list[Key]:
    """A name a curve; where little differs, what differs too."""
    told = {key.rpartition(".")[2]: values for key, values in rows.items()} if len(rows) <= 2 else {}
    labels = [
        ", ".join([entry.label, *(f"{key} {values[index]}" for key, values in told.items() if len(values[index]) < 24)])
        for index, entry in enumerate(entries)
    ]
    looks = zip(labels, entries, strict=True)
    return [Key(label, entry.colour, "line", entry.dash) for label, entry in looks]


def _value(value: object, entry: Entry) -> str:
    """A value as text. Where a run lies is no setting: its own folders read the same in every run."""
    shown = exact(value)
    for folder, name in ((entry.run.folder, "<run>"), (entry.root, "<pipeline>")):
        parts = folder.resolve().parts
        # As an absolute path, or from whichever folder the run was started in; one last part alone may be a plain word.
        for tail in (Path(*parts[start:]).as_posix() for start in range(len(parts) - 1)):
            if shown == tail or shown.startswith(f"{tail}/"):
                return name + shown[len(tail) :]
    return shown


def _labels(pipelines: list[Pipeline]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [pipeline.folder.resolve().parts for pipeline in pipelines]
    for depth in range(1, max(len(part) for part in parts) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(part[-1:])} ({index + 1})" for index, part in enumerate(parts)]
