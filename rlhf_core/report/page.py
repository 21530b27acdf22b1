"""The page of one run or pipeline: what the templates show, in the order they show it."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf_core.report import charts, facts
from rlhf_core.report.across import across
from rlhf_core.report.compare import groups
from rlhf_core.report.facts import Kernel
from rlhf_core.report.kinds import kind_of, main_panels, other_panels
from rlhf_core.report.panels import Panel
from rlhf_core.report.panels_rounds import rounds
from rlhf_core.report.read import Pipeline, Run, Sample, Stage
from rlhf_core.report.samples import SHOWN, TokenView, final_samples, score_lines, token_view
from rlhf_core.report.text import duration, number, signed
from rlhf_core.report.tiles import Tile

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """Everything shown of one stage; of one that has not begun, its name and status."""

    anchor: str
    stage: Stage
    run: Run | None
    memory: str = ""
    facts: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    others: list[Panel] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    tokens: TokenView | None = None
    kernels: list[Kernel] = field(default_factory=list)
    environment: list[tuple[str, str]] = field(default_factory=list)
    config: list[tuple[str, str]] = field(default_factory=list)


def render_pipeline(pipeline: Pipeline) -> str:
    """The page of one run or one pipeline, as HTML."""
    return render(
        "page.html.j2",
        title=pipeline.name,
        facts=facts.header(pipeline),
        bars=facts.timeline(pipeline.stages),
        rounds=rounds(pipeline.stages),
        sections=[section(stage, index) for index, stage in enumerate(pipeline.stages)],
    )


def render_comparison(pipelines: list[Pipeline], title: str) -> str:
    """The page of several runs or pipelines, as HTML."""
    found = groups(pipelines)
    together = across(found)
    shown = [together, *found] if together else found
    return render("compare.html.j2", title=title, groups=shown, count=len(pipelines))


def section(stage: Stage, index: int) -> Section:
    """What there is to show of a stage."""
    run, anchor = stage.run, f"stage-{index}"
    if run is None:
        return Section(anchor, stage, None)
    return Section(
        anchor,
        stage,
        run,
        memory=facts.peak_memory(run),
        facts=facts.stage_facts(run),
        tiles=kind_of(run).tiles(run),
        panels=main_panels(run),
        others=other_panels(run),
        samples=final_samples(run),
        tokens=token_view(run),
        kernels=facts.kernels(run.env),
        environment=facts.settings(run.env, without="kernels"),
        config=facts.settings(run.config),
    )


def render(template: str, **values: object) -> str:
    """Fill a template.

    Text is escaped; only the page's own scripts, known by their hash, may run, and nothing may be loaded.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    # Markup is text that is not escaped: figures hold no "<" (charts), and the other three are files of ours.
    environment.filters |= {"number": number, "signed": signed, "duration": duration, "figure": Markup}
    scripts = [charts.script(), (HERE / "page.js").read_text(encoding="utf-8")]
    return environment.get_template(template).render(
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        score_lines=score_lines,
        shown=SHOWN,
        **values,
    )


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
