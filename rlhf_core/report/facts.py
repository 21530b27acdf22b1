"""The plain facts beside the charts: when, where, with what, how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from rlhf_core.report.read import Pipeline, Run, Stage, flatten
from rlhf_core.report.text import duration, exact, number

PACKAGES = ("rlhf", "rlhf-core", "rlhf_core", "python", "torch", "transformers")
"""Whose versions the page's head names; the rest are among the settings."""


@dataclass(frozen=True)
class Bar:
    """One stage on the timeline; `start` and `width` in % of the whole."""

    name: str
    start: float
    width: float
    seconds: float | None
    status: str


@dataclass(frozen=True)
class Kernel:
    """Which backend an op ran on, and why not a faster one."""

    op: str
    backend: str
    note: str


def header(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Date, device, versions, seed and total time: those that are known."""
    runs = [stage.run for stage in pipeline.stages if stage.run]
    if not runs:
        return []
    env, config = flatten(runs[0].env), flatten(runs[0].config)
    versions = {key.rpartition("versions.")[2]: exact(value) for key, value in env.items()}
    total = [stage.seconds for stage in pipeline.stages if stage.seconds is not None]
    found = [
        ("Started", _date(runs[0].started or exact(env.get("started", "")))),
        ("Device", exact(env.get("device", ""))),
        ("Versions", " · ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)),
        ("Seed", exact(next((value for key, value in config.items() if key.rpartition(".")[2] == "seed"), ""))),
        ("Total time", duration(sum(total)) if total else ""),
    ]
    return [(label, value) for label, value in found if value]


def stage_facts(run: Run) -> list[str]:
    """Algorithm, steps, time a step and peak memory of one stage."""
    found = [run.algorithm, f"{run.steps:,} steps" if run.steps else "no step yet"]
    if run.seconds and run.steps:
        found += [duration(run.seconds), f"{number(run.seconds / run.steps)} s a step"]
    if peak := peak_memory(run):
        found.append(f"{peak} at peak")
    return [fact for fact in found if fact]


def peak_memory(run: Run) -> str:
    """The largest resident memory seen, or nothing."""
    columns = [run.timing[name] for name in ("peak_rss_mib", "rss_mib") if name in run.timing]
    seen = [value for series in columns for value in series.values if value is not None]
    return f"{max(seen) / 1024:.1f} GiB" if seen else ""


def timeline(stages: list[Stage]) -> list[Bar]:
    """Stages one after the other. Time between them (a pause, a resume) is left out."""
    total = sum(stage.seconds or 0.0 for stage in stages)
    bars, before = [], 0.0
    for stage in stages:
        part = 100 * (stage.seconds or 0.0) / total if total else 0.0
        bars.append(Bar(stage.name, before, part, stage.seconds, stage.status))
        before += part
    return bars


def kernels(env: Mapping[str, object]) -> list[Kernel]:
    """An entry an op; what env.json says beside the backend is the note."""
    found = []
    table = env.get("kernels")
    if isinstance(table, Mapping):
        table = table.get("used", table)
    for op, said in table.items() if isinstance(table, Mapping) else ():
        if isinstance(said, Mapping):
            note = "; ".join(exact(value) for key, value in flatten(said).items() if key != "backend" and value)
            found.append(Kernel(str(op), exact(said.get("backend", "")), note))
        else:
            found.append(Kernel(str(op), exact(said), ""))
    return found


def settings(tree: Mapping[str, object], without: str = "") -> list[tuple[str, str]]:
    """Dotted keys with their values, every digit kept; the branch `without` is left out."""
    return [(key, exact(value)) for key, value in flatten(tree).items() if not without or key.split(".")[0] != without]


def _date(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return text
