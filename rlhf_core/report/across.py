"""Runs of different algorithms side by side: what they have in common is their answers to held-out prompts."""

from rlhf_core.report import charts
from rlhf_core.report.charts import Dot
from rlhf_core.report.compare import Cell, Entry, Group, finals, frontier
from rlhf_core.report.panels import Key, Panel
from rlhf_core.report.text import duration

MEASURES = ("win_rate", "reward_gain_sd", "kl", "length_ratio", "eos_frac", "text_perplexity")
"""What can be compared whatever the algorithm; and each judge."""


def across(groups: list[Group]) -> Group | None:
    """The last stage of each run or pipeline that answered prompts; None where all are of one algorithm."""
    last = {entry.label: entry for group in groups for entry in group.entries if answered(entry)}
    entries = list(last.values())
    algorithms = [entry.run.algorithm for entry in entries]
    if len(set(algorithms)) < 2:
        return None
    judges = dict.fromkeys(name for entry in entries for name in entry.run.final if name.startswith("judge/"))
    names = [name for name in (MEASURES[0], *judges, *MEASURES[1:]) if any(name in e.run.final for e in entries)]
    results = finals(entries, names) | {"time": [Cell(duration(entry.run.seconds)) for entry in entries]}
    key = [Key(named(entry), entry.colour, "line", entry.dash) for entry in entries]
    panels = [panel for panel in (wins(entries), distances(entries), frontier(entries, *compared(entries))) if panel]
    return Group("Different algorithms", entries, {"algorithm": algorithms}, results, panels, key=key)


def answered(entry: Entry) -> bool:
    """Whether a stage's answers were measured, and their KL."""
    return "kl" in entry.run.final and any(name in entry.run.final for name in ("win_rate", "reward_gain_sd"))


def named(entry: Entry) -> str:
    """A run's label with its algorithm."""
    return f"{entry.label}: {entry.run.algorithm}"


def compared(entries: list[Entry]) -> tuple[str, str]:
    """What is drawn against KL, and its words: a judge's verdict rather than the reward, which may not be the same."""
    wins = any("win_rate" in entry.run.final for entry in entries)
    return ("win_rate", "win rate") if wins else ("reward_gain_sd", "reward gain in SD")


def wins(entries: list[Entry]) -> Panel | None:
    """Win rates with their intervals, best first."""
    dots = [
        Dot(named(entry), rate, entry.colour, entry.run.final.get("win_rate_low"), entry.run.final.get("win_rate_high"))
        for entry in entries
        if (rate := entry.run.final.get("win_rate")) is not None
    ]
    if not dots:
        return None
    dots.sort(key=lambda dot: -dot.x)
    caption = "Against the start's answers to the same prompts (or evaluator.win_rate.against); 95 % intervals."
    return Panel("Win rate", caption, charts.dots(dots, 0.5, "win rate, ½ is even"))


def distances(entries: list[Entry]) -> Panel:
    """The KL of each, nearest first."""
    dots = [Dot(named(entry), entry.run.final["kl"], entry.colour) for entry in entries]
    dots.sort(key=lambda dot: dot.x)
    caption = "To the model that each run started from: the same for all only where that is."
    return Panel("KL", caption, charts.dots(dots, 0.0, "nats a response"))
