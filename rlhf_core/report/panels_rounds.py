"""A pipeline that goes round: several policy stages, one after the other."""

from collections.abc import Iterator

from rlhf_core.report import charts
from rlhf_core.report.charts import Line, Row
from rlhf_core.report.kinds import POLICY_GRADIENT, kind_of
from rlhf_core.report.panels import Panel
from rlhf_core.report.panels_answers import judge_colour, start_of
from rlhf_core.report.read import Run, Stage
from rlhf_core.report.text import number

TITLE = "Reward and judges over rounds"


def rounds(stages: list[Stage]) -> Panel | None:
    """What each policy stage gained, by judges and by its own reward; None where there is one such stage, or none."""
    found = [(stage.name, stage.run) for stage in stages if stage.run and kind_of(stage.run) is POLICY_GRADIENT]
    measured = [(name, run) for name, run in found if run.final]
    if len(measured) < 2:
        return None
    judges = list(dict.fromkeys(metric for _, run in measured for metric in run.final if metric.startswith("judge/")))
    wanted = [(metric, f"judge: {metric[6:]}", judge_colour(index)) for index, metric in enumerate(judges)]
    stacked = []
    for metric, words, colour in [*wanted, ("reward", "learned reward, each round's own", "reward")]:
        if lines := list(segments(measured, metric, colour)):
            stacked.append(Row(words, lines, colour=colour))
    if not stacked:
        return None
    told = "; ".join(gain(measured, metric) for metric in judges)
    caption = (
        "A segment a round, from the policy it began with to its end, on held-out prompts. Each round may follow a "
        f"reward of its own: compare judges between rounds, not rewards. {told}"
    )
    return Panel(TITLE, caption.strip(), charts.stack(stacked, "rounds", each=170), wide=True)


def segments(measured: list[tuple[str, Run]], metric: str, colour: str) -> Iterator[Line]:
    """A line a round."""
    for index, (name, run) in enumerate(measured):
        if metric not in run.final:
            continue
        before, after = start_of(run, metric), run.final[metric]
        ends = [(float(index), before, f"before {name}"), (float(index + 1), after, f"after {name}")]
        kept = [end for end in ends if end[1] is not None]
        x, y, hover = (list(column) for column in zip(*kept, strict=True))
        yield Line(name, x, y, colour, "dots", {len(x) - 1: name}, hover)


def gain(measured: list[tuple[str, Run]], metric: str) -> str:
    """A judge's scores from before the first round to after the last, in words."""
    before = start_of(measured[0][1], metric)
    seen = [number(value) for value in (before, *(run.final.get(metric) for _, run in measured)) if value is not None]
    return f"{metric[6:].capitalize()}: {' → '.join(seen)}."
