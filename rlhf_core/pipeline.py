"""Named stages in order, each one ``rlhf train``; finished ones are skipped."""

import json
import logging
import os
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import UserError
from .hydra_glue import Composed, compose_train
from .jsonl import JsonLines
from .rounds import turns
from .run import train, write_json
from .settings import PipelineSettings, TrainSettings
from .stage_overrides import merge, resolve_stage, stage_overrides

log = logging.getLogger("rlhf")


@dataclass
class Stage:
    """One stage of a pipeline: its overrides and how far it is."""

    name: str
    folder: str
    overrides: list[str]
    command: str
    status: str = "pending"
    seconds: float | None = None
    headline: str = ""


def run(composed: Composed[PipelineSettings]) -> None:
    """Run the stages that are not finished, then show what they learned."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # processes would race for the folder of the pipeline
        raise UserError("rlhf pipeline runs in one process; run the `rlhf train` lines that it prints under torchrun")
    folder = composed.folder
    stages = plan(composed.settings, folder)
    claim(composed)
    for stage in stages:
        summary = folder / stage.folder / "summary.json"
        if summary.exists():
            finish(stage, json.loads(summary.read_text()))
    pending = {
        stage.name: compose(stage, folder) for stage in stages if stage.status != "done"
    }  # mistakes show at once
    console = Console(highlight=False, soft_wrap=True)
    for stage in stages:
        if stage.status == "done":
            console.print(f"[dim]{stage.name}: finished before, in {stage.seconds:.0f} s[/dim]")
            continue
        console.print(f"\n[bold]{stage.name}[/bold]  [dim]{escape(stage.command)}[/dim]")
        run_stage(stage, pending[stage.name], stages, composed)
        console.print(f"{stage.name}: {escape(stage.headline)} ({stage.seconds:.0f} s)")
    show(stages, composed, console)


def claim(composed: Composed[PipelineSettings]) -> None:
    """Take the pipeline folder, and write down what was asked for."""
    folder = composed.folder
    if composed.resume:
        return
    if (folder / "pipeline.json").exists():
        raise UserError(
            f"run_dir: {folder} holds a pipeline already; go on with it by resume={folder}, or choose another run_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overrides.txt").write_text("".join(line + "\n" for line in composed.overrides))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(composed.config))


def plan(settings: PipelineSettings, folder: Path) -> list[Stage]:
    """Each stage with its overrides in full, the folders of earlier stages filled in."""
    extra, runs = stage_overrides(settings), turns(settings)
    results: dict[str, list[Path]] = {name: [] for turn in runs for name in (turn.stage, turn.name)}
    stages = []
    for turn in runs:
        given = [f"seed={settings.seed}", f"device={settings.device}", *settings.stages[turn.stage]]
        for name in dict.fromkeys((turn.stage, turn.name)):  # what is for one round comes after what is for all
            given = merge(given, extra.get(name, []))
        overrides = [resolve_stage(text, results, turn.round) for text in given]
        command = shlex.join(["rlhf", "train", *overrides, f"run_dir={folder / turn.name}"])
        stages.append(Stage(turn.name, turn.name, overrides, command))
        for name in {turn.stage, turn.name}:
            results[name].append(folder / turn.name / "result")
    return stages


def compose(stage: Stage, folder: Path) -> Composed[TrainSettings]:
    """The stage's settings; one that was begun before is resumed."""
    own = folder / stage.folder
    return compose_train(stage.overrides, own, resume=(own / "config.yaml").exists())


def run_stage(
    stage: Stage, settings: Composed[TrainSettings], stages: list[Stage], composed: Composed[PipelineSettings]
) -> None:
    """Run one stage, or go on with it; pipeline.json says how it stands at any time."""
    stage.status = "running"
    write_status(stages, composed)
    started = time.monotonic()
    try:
        finish(stage, train(settings))
    except BaseException:
        stage.status, stage.seconds = "failed", time.monotonic() - started
        raise
    finally:
        write_status(stages, composed)


def finish(stage: Stage, summary: dict[str, Any]) -> None:
    """Note what a finished stage says of itself."""
    stage.status, stage.seconds, stage.headline = "done", summary["seconds"], summary["headline"]


def write_status(stages: list[Stage], composed: Composed[PipelineSettings]) -> None:
    """pipeline.json."""
    write_json(
        composed.folder / "pipeline.json",
        {"name": composed.settings.name, "stages": [asdict(stage) for stage in stages]},
    )


def show(stages: list[Stage], composed: Composed[PipelineSettings], console: Console) -> None:
    """The table of stages, samples before and after, and the report."""
    table = Table(title=f"pipeline {composed.settings.name}", title_justify="left")
    for column in ("stage", "what it learned, on held-out data", "time"):
        table.add_column(column, justify="right" if column == "time" else "left")
    for stage in stages:
        table.add_row(stage.name, stage.headline, f"{stage.seconds:.0f} s")
    table.add_row("", "", f"{sum(stage.seconds or 0 for stage in stages):.0f} s")
    console.print()
    console.print(table)
    show_samples(stages, composed, console)
    from .report import write_report  # plotly is slow to import, and only the end needs it

    write_status(stages, composed)
    console.print(f"report: {write_report([composed.folder], composed.folder / 'report.html')}")


def show_samples(stages: list[Stage], composed: Composed[PipelineSettings], console: Console) -> None:
    """The same prompts answered before and after the last stage that sampled."""
    rows = [list(JsonLines(composed.folder / stage.folder / "samples.jsonl").rows()) for stage in stages]
    sampled: list[dict[str, Any]] = next((found for found in reversed(rows) if found), [])
    last = [row for row in sampled if row["step"] == sampled[-1]["step"] and row["baseline"] is not None]
    if not last or not composed.settings.samples:
        return
    table = Table(title="the same held-out prompts before and after", title_justify="left", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, overflow="fold")
    for row in last[: composed.settings.samples]:
        table.add_row(escape(row["prompt"]), escape(row["baseline"]), escape(row["response"]))
    console.print(table)
