"""What a reward model learned, beside what its raters agree on among themselves."""

from rlhf_core.report import charts
from rlhf_core.report.charts import Dot, Level, Row
from rlhf_core.report.panels import Key, Panel, both, key_of, line, losses
from rlhf_core.report.read import Run

REFERENCES = (
    ("human", "One rater against the rest", "human"),
    ("sentiment", "Lexicon rule", "judge-1"),
    ("length", "Length", "length"),
    ("chance", "Chance", "muted"),
)


def ranking(run: Run) -> list[Panel]:
    """Panels of a reward model's stage."""
    return [accuracy(run), learning_curve(run), losses(run, "Negative log-likelihood of the raters' order")]


def accuracy(run: Run) -> Panel:
    """Held-out accuracy with its 95 % interval, beside the ceiling and the simple rules."""
    title = "Agreement with human raters"
    caption = (
        "Part of held-out pairs put in the order of the raters' mean. One rater against the rest is the human ceiling; "
        "whiskers are the 95 % interval."
    )
    if "accuracy" not in run.final:
        return Panel(title, caption, empty="No held-out accuracy has been measured yet.", wide=True)
    low, high = run.final.get("accuracy_low"), run.final.get("accuracy_high")
    dots = [Dot(label, run.final[name], colour) for name, label, colour in REFERENCES if name in run.final]
    dots.append(Dot("Reward model", run.final["accuracy"], "reward", low, high))
    dots.sort(key=lambda dot: -dot.x)
    start = run.final.get("chance", 0.5)
    return Panel(title, caption, charts.dots(dots, start, "accuracy on held-out pairs"), wide=True)


def learning_curve(run: Run) -> Panel:
    """Accuracy over the steps, between chance and the human ceiling."""
    title, caption = "Learning curve", "Accuracy on pairs that raters tell apart, and on all pairs."
    lines = both(run, "accuracy", "reward")
    key = key_of(run, ["accuracy"])
    if "accuracy_all" in run.held_out:
        lines.append(line(run.held_out["accuracy_all"], "held-out, all pairs", "update", "dots"))
        key = [*key, Key("held-out, all pairs", "update", "dots")]
    if not lines:
        return Panel(title, caption, empty="No accuracy in this run's metrics.")
    references = [("human", "human ceiling", "human"), ("chance", "chance", "muted")]
    levels = [Level(run.final[name], label, colour) for name, label, colour in references if name in run.final]
    return Panel(title, caption, charts.stack([Row("", lines, levels)]), key=key)
