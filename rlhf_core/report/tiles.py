"""The few numbers a stage is judged by."""

from collections.abc import Collection
from dataclasses import dataclass

from rlhf_core.report.panels_answers import LENGTH_BAND, opponent, start_of
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


def preference(run: Run) -> list[Tile]:
    """Held-out accuracy and margin of the implicit rewards, with where they began."""
    names = [("accuracy", "Held-out pairs in order"), ("reward_margin", "Margin of implicit rewards")]
    return [_change(run, name, label) for name, label in names if name in run.final]


def others(run: Run, without: Collection[str] = (), prefixes: tuple[str, ...] = ()) -> list[Tile]:
    """All final numbers as they are, but those ``without``, and those that begin so."""
    kept = {name: value for name, value in run.final.items() if name not in without and not name.startswith(prefixes)}
    return [Tile(name, number(value)) for name, value in kept.items()]


def answers(run: Run) -> list[Tile]:
    """Reward, judges, win rate, KL and length."""
    final = run.final
    tiles = [_change(run, "reward", "Reward")]
    for name in final:
        if name.startswith("judge/"):
            tiles.append(_change(run, name, f"Judge: {name[6:]}"))
    if "win_rate" in final:
        tiles.append(Tile(f"Win rate against {opponent(run)}", number(final["win_rate"]), _ci(run, "win_rate")))
    if "kl" in final:
        tiles.append(Tile("KL", number(final["kl"]), "nats a response"))
    if (ratio := final.get("length_ratio")) is not None:
        low, high = LENGTH_BAND
        inside = low <= 100 * ratio <= high
        detail = f"{'within' if inside else 'outside'} {low:.0f} to {high:.0f}\u00a0%"
        tiles.append(Tile("Length, of the start's", f"{100 * ratio:.0f}\u00a0%", detail, warn=not inside))
    return [tile for tile in tiles if tile.value != NONE]


def _change(run: Run, name: str, label: str) -> Tile:
    if not run.steps:  # nothing was learned yet
        return Tile(label, number(run.final.get(name)))
    start, gain_sd = start_of(run, name), run.final.get(f"{name}_gain_sd")
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
