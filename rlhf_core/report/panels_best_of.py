"""What choosing the best of n answers is worth, without training."""

import re

from rlhf_core.report import charts
from rlhf_core.report.charts import Level, Line, Row
from rlhf_core.report.panels import Key, Panel
from rlhf_core.report.panels_answers import judge_colour, opponent
from rlhf_core.report.read import Run

CAPTION = (
    "Of n answers to each held-out prompt the one with the highest reward, at a KL to the policy that answers of "
    "log n − (n − 1)/n nats. A judge that falls while the reward rises is over-optimisation by choosing alone."
)


def best_of_n(run: Run) -> list[Panel]:
    """Reward, judges and win rate of the best of n against KL, of the start and at the end; none if not measured."""
    counts = sorted(int(found[1]) for name in run.held_out if (found := re.fullmatch(r"best_of_(\d+)/kl", name)))
    if not counts:
        return []
    first = f"best_of_{counts[0]}/"
    names = [name.removeprefix(first) for name in run.held_out if name.startswith(f"{first}judge/")]
    wanted = [("reward", "proxy reward", "reward")]
    wanted += [(name, f"judge: {name[6:]}", judge_colour(index)) for index, name in enumerate(names)]
    wanted.append(("win_rate", f"win rate against {opponent(run)}", "human"))
    stacked = []
    for name, words, colour in wanted:
        if lines := paths(run, name, counts, colour):
            stacked.append(Row(words, lines, [Level(0.5, "even")] if name == "win_rate" else [], colour=colour))
    if not stacked:
        return []
    start, end = Key("policy as it started", "muted", "dots", "dash"), Key("policy at the end", "ink", "dots")
    key = [start, end] if len(stacked[0].lines) > 1 else []
    figure = charts.stack(stacked, "KL of choosing, nats a response", each=170)
    return [Panel("Best of n", CAPTION, figure, key=key, wide=True)]


def paths(run: Run, name: str, counts: list[int], colour: str) -> list[Line]:
    """A metric of the best of each n against their KL: at the first evaluation, and at the last if it is another."""
    steps = sorted({step for n in counts for step in run.held_out[f"best_of_{n}/kl"].steps})
    last = path(run, name, counts, steps[-1], colour)
    first = path(run, name, counts, steps[0], "muted", dash="dash") if len(steps) > 1 else None
    return [line for line in (first, last) if line]


def path(run: Run, name: str, counts: list[int], step: int, colour: str, dash: str = "solid") -> Line | None:
    """A metric of the best of each n against their KL, as one evaluation measured them."""
    points = []
    for n in counts:
        x, y = (seen(run, f"best_of_{n}/{metric}", step) for metric in ("kl", name))
        if x is not None and y is not None:
            points.append((n, x, y))
    if not points:
        return None
    labels = {index: f"n = {n}" for index, (n, _, _) in enumerate(points)} if dash == "solid" else {}
    hover = [f"best of {n}, step {step}" for n, _, _ in points]
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    return Line(f"step {step}", xs, list(ys), colour, "dots", labels, hover, dash)


def seen(run: Run, metric: str, step: int) -> float | None:
    """A held-out metric at a step."""
    series = run.held_out.get(metric)
    return series.values[series.steps.index(step)] if series and step in series.steps else None
