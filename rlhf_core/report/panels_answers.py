"""Answers to held-out prompts: what was bought with the KL, and what judges that training never saw say of it."""

from dataclasses import replace
from pathlib import Path

from rlhf_core.report import charts
from rlhf_core.report.charts import Level, Line, Row
from rlhf_core.report.panels import HELD_OUT, Key, Panel, Wanted, both, drawn, key_of, moves, number_at, panel
from rlhf_core.report.read import Run, Series, flatten
from rlhf_core.report.text import number

LENGTH_BAND = (60.0, 140.0)
"""Mean response length, in % of the start's, that counts as no drift."""

CLOUD = Key("training batches", "muted", "cloud")

JUDGES = 4
"""Judges that have a colour of their own."""

PROXY = "proxy reward (what the policy is trained on)"


def answers(run: Run) -> list[Panel]:
    """Panels of a stage that does not sample to learn, of what its answers show; none where it answers nothing."""
    if "kl" not in run.held_out:
        return []
    return drawn([over_optimisation(run, "reward of the answers"), scores(run, "reward"), divergence(run), length(run)])


def judges(run: Run) -> list[str]:
    """Metric names of the independent judges."""
    return [name for name in run.held_out if name.startswith("judge/")]


def opponent(run: Run) -> str:
    """Whose answers a win rate is against: the start's, or a checkpoint's by the name of its stage."""
    against = flatten(run.config).get("evaluator.win_rate.against")
    parts = Path(str(against)).parts if against else ("start",)
    return parts[-2] if parts[-1] == "result" and len(parts) > 1 else parts[-1]


def start_of(run: Run, metric: str) -> float | None:
    """A metric of the answers before training: the first evaluation, else what the summary says of the start.

    A summary's ``judge_start/NAME`` is of ``evaluator.win_rate.against`` where that is set, which is another model.
    """
    series = run.held_out.get(metric)
    if series and series.steps[0] == 0 and series.first is not None:
        return series.first
    kind, slash, name = metric.partition("/")
    return run.final.get(f"{kind}_start{slash}{name}")


def judge_colour(index: int) -> str:
    """The colour of the judge at this place."""
    return f"judge-{index % JUDGES + 1}"


def against_kl(columns: dict[str, Series], metric: str, colour: str, name: str = "") -> Line | None:
    """A metric on the KL measured at the same step, in order of steps."""
    kl = columns.get("kl", Series())
    at = {step: value for step, value in zip(kl.steps, kl.values, strict=True) if value is not None}
    series = columns.get(metric, Series())
    points = [
        (step, at[step], value)
        for step, value in zip(series.steps, series.values, strict=True)
        if step in at and value is not None
    ]
    if not points:
        return None
    steps, x, y = zip(*points, strict=True)
    return Line(name or metric, list(x), list(y), colour, "dots", hover=[f"at step {step}" for step in steps])


def over_optimisation(run: Run, reward: str = PROXY) -> Panel:
    """The reward, under these words, and each judge against KL."""
    title = "Reward against KL"
    columns, where = (run.held_out, "held-out prompts") if "kl" in run.held_out else (run.train, "training batches")
    names = [("reward", reward, "reward")]
    names += [(name, f"judge: {name[6:]}", judge_colour(i)) for i, name in enumerate(judges(run))]
    stacked = []
    for name, words, colour in names:
        if found := against_kl(columns, name, colour):
            stacked.append(Row(words, [*cloud(run, name, colour), _with_ends(found)], colour=colour))
    if not stacked:
        return Panel(title, "", empty="No reward with its KL has been measured yet.", wide=True)
    caption = f"Along the line, one point an evaluation on {where}, in order of steps. {_verdict(run, reward)}"
    figure = charts.stack(stacked, "KL to the start model, nats a response", _peak(run), each=170)
    has_cloud = bool(cloud(run, "reward", ""))
    return Panel(title, caption, figure, key=[CLOUD, HELD_OUT] if has_cloud else [], wide=True)


def cloud(run: Run, metric: str, colour: str) -> list[Line]:
    """The training batches on their KL: what there is to see between two evaluations."""
    found = against_kl(run.train, metric, colour, "training batch") if "kl" in run.held_out else None
    return [replace(found, mark="cloud")] if found else []


def scores(run: Run, reward: str = "proxy reward") -> Panel:
    """The reward, under these words, judges and win rate over steps."""
    wanted = [Wanted("reward", reward, "reward")]
    wanted += [Wanted(name, f"judge: {name[6:]}", judge_colour(i)) for i, name in enumerate(judges(run))]
    wanted.append(Wanted("win_rate", f"win rate against {opponent(run)}", "human", [Level(0.5, "even")]))
    return panel(run, "Reward and judges", "Mean score of a response.", wanted)


def divergence(run: Run) -> Panel:
    """KL to the reference, the coefficient that holds it, and its target."""
    target = number_at(flatten(run.config), ("kl_target", "target_kl"))
    levels = [Level(target, f"target {number(target)}")] if target is not None else []
    wanted = [Wanted("kl", "KL, nats a response", "kl", levels), Wanted("kl_coef", "KL coefficient", "update")]
    if not moves(run, "kl_coef"):
        return panel(run, "KL", "Distance of the policy from the start model on its own answers.", wanted[:1])
    return panel(run, "KL and its coefficient", "Distance from the start model, and the price put on it.", wanted)


def length(run: Run) -> Panel:
    """Response length in % of the start's."""
    title = "Length drift"
    start = next((s.first for s in (run.held_out.get("length"), run.train.get("length")) if s and s.first), None)
    if not start:
        return Panel(title, "", empty="No response length in this run's metrics.")
    caption = f"Mean response length in % of the start's ({number(start)} tokens). The band is 60 to 140\u00a0%."
    row = Row("", both(run, "length", "length", scale=100 / start), [Level(100.0, "start")], LENGTH_BAND)
    return Panel(title, caption, charts.stack([row]), key=key_of(run, ["length"]))


def parts(run: Run) -> list[Panel]:
    """The parts of the reward, and what is left of plain text, where they are logged."""
    return reward_parts(run) + plain_text(run)


def reward_parts(run: Run) -> list[Panel]:
    """The parts of a summed reward, where it has any."""
    parts = [name for name in dict.fromkeys((*run.held_out, *run.train)) if name.startswith("reward/")]
    wanted = [Wanted(name, name[7:], "reward") for name in parts]
    return drawn([panel(run, "Parts of the reward", "As logged, a part each.", wanted)])


def plain_text(run: Run) -> list[Panel]:
    """What the policy still knows of plain text, where that was measured."""
    caption = "On held-out documents, which reward and preferences say nothing of: a rise is the alignment tax."
    training = Wanted("ptx_loss", "loss on training text, nats a token", "loss")
    wanted = [Wanted("text_perplexity", "perplexity", "loss"), training]
    return drawn([panel(run, "Plain text", caption, wanted)])


def highest(series: Series) -> tuple[int, float] | None:
    """The step and the value of a series' first maximum."""
    points = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    return max(points, key=lambda point: point[1]) if points else None


def _with_ends(found: Line) -> Line:
    last = len(found.x) - 1
    labels = {0: found.hover[0].removeprefix("at "), last: found.hover[last].removeprefix("at ")} if last else {}
    return replace(found, labels=labels)


def _peak(run: Run) -> dict[float, str]:
    """Where the first judge is highest, if it fell after that."""
    for name in judges(run)[:1]:
        best, kl = highest(run.held_out[name]), run.held_out.get("kl", Series())
        if best and best[0] in kl.steps and best[0] != run.held_out[name].steps[-1]:
            x = kl.values[kl.steps.index(best[0])]
            return {x: f"{name[6:]} highest, step {best[0]}"} if x is not None else {}
    return {}


def _verdict(run: Run, reward: str) -> str:
    names = judges(run)
    if not names:
        return "No independent judge was run, so over-optimisation cannot be seen here." if reward == PROXY else ""
    told = []
    for name in names:
        series = run.held_out[name]
        best, last = highest(series), series.last
        if best is None or last is None:
            continue
        if best[0] == series.steps[-1]:
            told.append(f"{name[6:]} is highest at the end ({number(last)})")
        else:
            told.append(f"{name[6:]} is highest at step {best[0]} ({number(best[1])}) and ends at {number(last)}")
    return f"Judges: {'; '.join(told)}. A judge that falls while the reward rises is over-optimisation." if told else ""
