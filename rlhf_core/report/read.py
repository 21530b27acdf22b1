"""A run folder as typed values. Nothing here writes, and nothing but the folder is read.

A run that is still going (or was killed) is read as far as it went: a missing file is an empty value, a last line cut
short is left out, and a damaged one is left out and said in `Run.notes`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped,unused-ignore]

from rlhf_core.errors import UserError
from rlhf_core.report.tolerant import (
    Json,
    finite,
    finite_by_name,
    finite_list,
    json_lines,
    json_object,
    json_value,
    text,
    text_lines,
)


@dataclass(frozen=True)
class Series:
    """One metric: `values[i]` was seen at `steps[i]`; None where it was no number."""

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def first(self) -> float | None:
        """The first finite value."""
        return next((value for value in self.values if value is not None), None)

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and what the policy said to it, beside what the start model said."""

    step: int
    prompt: str
    response: str
    baseline: str | None
    scores: dict[str, float]
    baseline_scores: dict[str, float]
    stop: str
    tokens: list[str]
    kl: list[float]
    advantages: list[float]


@dataclass(frozen=True)
class Run:
    """One stage's folder.

    Attributes:
        train, held_out: metrics by name, of phase "train" and "eval".
        final: the summary's held-out numbers; of a run that goes on, the last evaluation.
        seconds: since the stage's start; the newest known where the run goes on.
        finished: whether summary.json is there.
        notes: what could not be read, a sentence each.
    """

    folder: Path
    name: str
    algorithm: str
    finished: bool
    started: str
    seconds: float | None
    headline: str
    final: dict[str, float]
    train: dict[str, Series]
    held_out: dict[str, Series]
    timing: dict[str, Series]
    samples: list[Sample]
    config: dict[str, object]
    overrides: list[str]
    plugins: list[dict[str, str]]
    env: dict[str, object]
    log: list[str]
    notes: list[str]

    @property
    def steps(self) -> int:
        """The last step seen."""
        return max((series.steps[-1] for series in (*self.train.values(), *self.held_out.values())), default=0)


@dataclass(frozen=True)
class Stage:
    """One entry of a pipeline; `run` is None where its folder holds nothing yet."""

    name: str
    command: str
    status: str
    seconds: float | None
    run: Run | None


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's folder. A single run reads as a pipeline of one stage without a command."""

    folder: Path
    name: str
    stages: list[Stage]


def read(folder: Path) -> list[Pipeline]:
    """Read a folder: a stage's or a pipeline's gives one, a sweep's one for each run in it.

    Raises:
        UserError: the folder is missing or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"report: {folder} is not a folder; give the folder of a run, a pipeline or a sweep")
    if (folder / "pipeline.json").is_file():
        return [_pipeline(folder)]
    if _is_run(folder):
        run = read_run(folder)
        status = "done" if run.finished else "running"
        return [Pipeline(folder, run.name, [Stage(run.name, "", status, run.seconds, run)])]
    children = sorted((child for child in folder.iterdir() if _is_readable(child)), key=_natural)
    if not children:
        raise UserError(
            f"report: {folder} holds no run (no config.yaml, metrics.jsonl or pipeline.json, nor a sub-folder with one)"
            "; give the folder that `rlhf train` or `rlhf pipeline` printed"
        )
    return [pipeline for child in children for pipeline in read(child)]


def read_run(folder: Path) -> Run:
    """Read one stage's folder, as far as it has been written."""
    notes: list[str] = []
    summary = json_object(folder / "summary.json", notes)
    metrics = list(json_lines(folder / "metrics.jsonl", notes))
    timing = _series(json_lines(folder / "timing.jsonl", notes))
    held_out = _series(row for row in metrics if row.get("phase") == "eval")
    plugins = _plugins(folder / "plugins.json", notes)
    config = _config(folder / "config.yaml", notes)
    clock = timing.get("seconds")
    return Run(
        folder=folder,
        name=folder.resolve().name,
        algorithm=text(summary.get("algorithm")) or _chosen(plugins, "algorithm"),
        finished=(folder / "summary.json").is_file(),
        started=text(summary.get("started")),
        seconds=finite(summary.get("seconds")) if summary else clock.last if clock else None,
        headline=text(summary.get("headline")),
        final=finite_by_name(summary.get("metrics")) or _last_row(held_out),
        train=_series(row for row in metrics if row.get("phase") == "train"),
        held_out=held_out,
        timing=timing,
        samples=[_sample(row) for row in json_lines(folder / "samples.jsonl", notes)],
        config=config,
        overrides=[line for line in text_lines(folder / "overrides.txt") if line.strip()],
        plugins=plugins,
        env=dict(json_object(folder / "env.json", notes)),
        log=text_lines(folder / "log.txt")[-60:],
        notes=notes,
    )


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted keys of a nested mapping, as one types them in an override; a list is a leaf."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten({str(inner): item for inner, item in value.items()}, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json"))


def _is_readable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "pipeline.json").is_file() or _is_run(folder))


def _natural(folder: Path) -> tuple[int, str]:
    return (int(folder.name), "") if folder.name.isdigit() else (1 << 62, folder.name)


def _pipeline(folder: Path) -> Pipeline:
    notes: list[str] = []
    content = json_object(folder / "pipeline.json", notes)
    entries = content.get("stages")
    if notes or not isinstance(entries, list):
        raise UserError(
            f"report: {folder}/pipeline.json cannot be read as a pipeline; name its stages' folders instead"
        )
    stages = [_stage(folder, entry) for entry in entries if isinstance(entry, dict)]
    return Pipeline(folder, text(content.get("name")) or folder.resolve().name, stages)


def _stage(folder: Path, entry: Json) -> Stage:
    name = text(entry.get("name"))
    home = folder / (text(entry.get("folder")) or name)
    run = read_run(home) if home.is_dir() and _is_run(home) else None
    seconds = finite(entry.get("seconds"))
    if seconds is None and run:
        seconds = run.seconds
    return Stage(name, text(entry.get("command")), text(entry.get("status")) or "pending", seconds, run)


def _config(path: Path, notes: list[str]) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        notes.append(f"{path.name} cannot be read ({type(error).__name__}).")
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _plugins(path: Path, notes: list[str]) -> list[dict[str, str]]:
    content = json_value(path, notes)
    entries = content if isinstance(content, list) else []
    return [{str(key): text(value) for key, value in entry.items()} for entry in entries if isinstance(entry, dict)]


def _chosen(plugins: list[dict[str, str]], kind: str) -> str:
    return next((plugin.get("name", "") for plugin in plugins if plugin.get("kind") == kind), "")


def _series(rows: Iterator[Json]) -> dict[str, Series]:
    """Columns of rows. A step written twice (a run resumed from before it) counts as last written."""
    columns: dict[str, dict[int, float | None]] = {}
    for row in rows:
        step = finite(row.get("step"))
        for name, value in row.items():
            if step is not None and name not in ("step", "phase") and isinstance(value, int | float):
                columns.setdefault(name, {})[int(step)] = finite(value)
    return {name: Series(sorted(seen), [seen[step] for step in sorted(seen)]) for name, seen in columns.items()}


def _last_row(columns: Mapping[str, Series]) -> dict[str, float]:
    return {name: series.last for name, series in columns.items() if series.last is not None}


def _sample(row: Json) -> Sample:
    baseline, tokens = row.get("baseline"), row.get("tokens")
    return Sample(
        step=int(finite(row.get("step")) or 0),
        prompt=text(row.get("prompt")),
        response=text(row.get("response")),
        baseline=None if baseline is None else text(baseline),
        scores=finite_by_name(row.get("scores")),
        baseline_scores=finite_by_name(row.get("baseline_scores")),
        stop=text(row.get("stop")),
        tokens=[text(token) for token in tokens] if isinstance(tokens, list) else [],
        kl=finite_list(row.get("kl")),
        advantages=finite_list(row.get("advantages")),
    )
