"""The few numbers a stage is judged by."""

from dataclasses import dataclass

from rlhf_core.report.panels_ppo import LENGTH_BAND
from rlhf_core.report.read import Run
from rlhf_core.report.text import NONE, number, signed


@dataclass(frozen=True)
class Tile:
    """One number with its name and what to hold it against; `warn` where it is out of its bounds."""

    label: str
    value: str
    detail: str = ""
    warn: bool = False


def language_model(run: Run) -> list[Tile]:
    """Held-out loss and perplexity, with where they began."""
    tiles = []
    for name, label in (("loss", "Held-out loss"), ("perplexity", "Perplexity")):
        if name in run.final:
            start = run.held_out[name].first if name in run.held_out else None
            tiles.append(Tile(label, number(run.final[name]), f"from {number(start)}" if start is not None else ""))
    return tiles


def ranking(run: Run) -> list[Tile]:
    """Accuracy and what it stands beside."""
    names = [("accuracy", "Held-out accuracy"), ("human", "Human ceiling")]
    names += [("sentiment", "Lexicon rule"), ("length", "Length")]
    return [Tile(label, number(run.final[name]), _ci(run, name)) for name, label in names if name in run.final]


def policy_gradient(run: Run) -> list[Tile]:
    """Reward, judges, win rate, KL and length."""
    final = run.final
    tiles = [_change(run, "reward", "Reward", _start(run, "reward", "reward_start"), final.get("reward_gain_sd"))]
    for name in final:
        if name.startswith("judge/"):
            tiles.append(_change(run, name, f"Judge: {name[6:]}", _start(run, name, f"judge_start/{name[6:]}"), None))
    if "win_rate" in final:
        tiles.append(Tile("Win rate against start", number(final["win_rate"]), _ci(run, "win_rate")))
    if "kl" in final:
        tiles.append(Tile("KL", number(final["kl"]), "nats a response"))
    if (ratio := final.get("length_ratio")) is not None:
        low, high = LENGTH_BAND
        inside = low <= 100 * ratio <= high
        detail = f"{'within' if inside else 'outside'} {low:.0f} to {high:.0f}\u00a0%"
        tiles.append(Tile("Length, of the start's", f"{100 * ratio:.0f}\u00a0%", detail, warn=not inside))
    return [tile for tile in tiles if tile.value != NONE]


def _start(run: Run, metric: str, summary: str) -> float | None:
    if summary in run.final:
        return run.final[summary]
    return run.held_out[metric].first if metric in run.held_out else None


def _change(run: Run, name: str, label: str, start: float | None, gain_sd: float | None) -> Tile:
    detail = f"from {number(start)}" if start is not None else ""
    if gain_sd is not None:
        detail += f", {signed(gain_sd)} SD"
    return Tile(label, number(run.final.get(name)), detail)


def interval(run: Run, name: str) -> str:
    """The ends of a final number's 95 % interval, or nothing."""
    low, high = run.final.get(f"{name}_low"), run.final.get(f"{name}_high")
    return f"{number(low)} to {number(high)}" if low is not None and high is not None else ""


def _ci(run: Run, name: str) -> str:
    ends = interval(run, name)
    return f"95\u00a0%: {ends}" if ends else ""
