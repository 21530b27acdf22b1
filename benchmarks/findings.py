"""Tables and pictures of docs/findings.md from the runs that benchmarks/findings.sh made.

python benchmarks/findings.py RUNS [OUT]    prints the tables, writes the pictures (needs matplotlib)
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

SEEDS = range(5)
ALGORITHMS = (
    "ppo", "reinforce", "rloo", "reinforce_pp", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "online_dpo", "best_of_n",
    "dpo", "ipo", "kto", "orpo", "simpo", "feedme", "feedme_reward",
)  # fmt: skip
PPO = "base{seed}/ppo"
"""That of the default pipeline."""
Rows = list[dict[str, Any]]


class Runs:
    """The run folders of one experiment, by seed."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds NAME-SEED/summary.json."""
        self.folder = folder

    def place(self, name: str, seed: int) -> Path:
        """The run of a seed: NAME-SEED, or where NAME has a place for it."""
        return self.folder / (name.format(seed=seed) if "{" in name else f"{name}-{seed}")

    def summaries(self, name: str) -> dict[int, dict[str, Any]]:
        """What finished runs learned."""
        paths = {seed: self.place(name, seed) / "summary.json" for seed in SEEDS}
        return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}

    def metric(self, name: str, metric: str) -> dict[int, float]:
        """A metric of the last evaluation."""
        found = self.summaries(name)
        return {seed: one["metrics"][metric] for seed, one in found.items() if metric in one["metrics"]}

    def evaluations(self, name: str) -> dict[int, Rows]:
        """All evaluations of each seed."""
        found: dict[int, Rows] = {}
        for seed in self.summaries(name):
            lines = (self.place(name, seed) / "metrics.jsonl").read_text().splitlines()
            found[seed] = [row for row in map(json.loads, lines) if row["phase"] == "eval"]
        return found


def spread(values: Mapping[int, float], text: Callable[[float], str]) -> str:
    """Mean ± standard deviation over seeds."""
    if not values:
        return "–"
    numbers = list(values.values())
    return text(fmean(numbers)) + (f" ± {text(stdev(numbers))}" if len(numbers) > 1 else "")


def percent(value: float) -> str:
    """With one decimal."""
    return f"{100 * value:.1f}"


def plain(value: float) -> str:
    """With two decimals."""
    return f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def algorithms(runs: Runs) -> Iterator[str]:
    """Every algorithm on the default task."""
    rows = []
    for name in ALGORITHMS:
        run = PPO if name == "ppo" else f"cmp-{name}"
        found = runs.metric(run, "win_rate")
        least = min(found.values(), default=0.0)
        rows.append([
            f"`{name}`", str(len(found)), spread(found, percent), percent(least), spread(runs.metric(run, "kl"), plain),
            spread(runs.metric(run, "reward_gain_sd"), plain), spread(runs.metric(run, "length_ratio"), plain),
            spread({seed: one["seconds"] for seed, one in runs.summaries(run).items()}, lambda value: f"{value:.0f}"),
        ])  # fmt: skip
    yield table(
        ["algorithm", "seeds", "wins against SFT, %", "least", "KL, nats", "reward, SD", "length, of SFT's", "s"], rows
    )


def pairs(runs: Runs) -> Iterator[str]:
    """(a) All pairs of a ranking together against shuffled pairs."""
    arms = {"all pairs of a ranking together": "pairs-ranking", "every pair apart, shuffled": "pairs-shuffled"}
    rows = [
        [label, spread(runs.metric(name, "accuracy"), percent), spread(runs.metric(name, "accuracy_all"), percent),
         spread({seed: one["seconds"] for seed, one in runs.summaries(name).items()}, lambda value: f"{value:.0f}")]
        for label, name in arms.items()
    ]  # fmt: skip
    yield table(["", "agrees with raters, %", "all pairs, %", "s"], rows)
    one, other = (runs.metric(name, "accuracy") for name in arms.values())
    differences = {seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}
    yield f"difference, seed by seed: {spread(differences, percent)} points\n"


def tax(runs: Runs) -> Iterator[str]:
    """(b) The alignment tax, without and with pretraining text."""
    rows = []
    for label, name in {"γ_ptx = 0": "cmp-ppo", "γ_ptx = 0.5": "tax"}.items():
        start = {seed: rows_[0]["text_loss"] for seed, rows_ in runs.evaluations(name).items()}
        rows.append([
            label, spread(start, plain), spread(runs.metric(name, "text_loss"), plain),
            spread(runs.metric(name, "win_rate"), percent), spread(runs.metric(name, "reward_gain_sd"), plain),
            spread(runs.metric(name, "kl"), plain),
        ])  # fmt: skip
    yield table(["", "text loss before", "after", "wins, %", "reward, SD", "KL, nats"], rows)


def over(runs: Runs) -> Iterator[str]:
    """(c) Over-optimisation of one proxy and of the worst of three."""
    rows = []
    for label, name in {"one weak reward model": "over", "the worst of three": "overens"}.items():
        for row in along(runs.evaluations(name)):
            if row["step"] % 16 == 0:
                rows.append([label, str(row["step"]), plain(row["kl"]), plain(row["reward"]), plain(row["judge/sum"])])
    yield table(["", "step", "KL, nats", "proxy reward", "gold judge"], rows)
    for label, name in {"one": "over", "three": "overens"}.items():
        peaks = {}
        falls = {}
        for seed, found in runs.evaluations(name).items():
            gold = [row["judge/sum"] for row in found]
            best = max(range(len(gold)), key=gold.__getitem__)
            peaks[seed], falls[seed] = found[best]["kl"], gold[best] - gold[-1]
        yield (
            f"{label}: KL at the gold judge's peak {spread(peaks, plain)} nats, "
            f"lost from there to the end {spread(falls, plain)}\n"
        )


def best_of_n(runs: Runs) -> Iterator[str]:
    """(d) Best of n against PPO at equal KL."""
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        kl = runs.metric("bon", f"best_of_{n}/kl")
        judge = runs.metric("bon", f"best_of_{n}/judge/sentiment")
        reward = runs.metric("bon", f"best_of_{n}/reward")
        rows.append([
            str(n), spread(kl, plain).split(" ")[0], spread(reward, plain), spread(judge, plain),
            spread(at_kl(runs, "reward", kl), plain), spread(at_kl(runs, "judge/sentiment", kl), plain),
        ])  # fmt: skip
    yield table(
        ["n", "KL, nats", "reward, best of n", "judge, best of n", "reward, PPO at that KL", "judge, PPO"], rows
    )


def at_kl(runs: Runs, metric: str, wanted: Mapping[int, float]) -> dict[int, float]:
    """PPO's metric where its KL passes what is wanted, between evaluations by a straight line."""
    found: dict[int, float] = {}
    for seed, rows in runs.evaluations(PPO).items():
        for before, after in pairwise(rows):
            if seed in wanted and before["kl"] <= wanted[seed] <= after["kl"]:
                share = (wanted[seed] - before["kl"]) / max(after["kl"] - before["kl"], 1e-9)
                found[seed] = before[metric] + share * (after[metric] - before[metric])
                break
    return found


def bigger(runs: Runs) -> Iterator[str]:
    """(e) A small aligned model against a bigger unaligned one."""
    arms = {"small, PPO": "bigger-ppo", "small, SFT": "bigger-sft", "small, pretrained": "bigger-pretrain"}
    rows = [
        [label, spread(runs.metric(name, "win_rate"), percent), spread(runs.metric(name, "judge/sentiment"), plain),
         spread(runs.metric(name, "judge_start/sentiment"), plain), spread(runs.metric(name, "text_loss"), plain)]
        for label, name in arms.items()
    ]  # fmt: skip
    yield table(["against the big pretrained one", "wins, %", "judge", "judge of the big one", "text loss"], rows)


def iterated(runs: Runs) -> Iterator[str]:
    """(f) Rounds of fresh rankings against one round of as many."""
    rows = []
    for label, name in {"one round": "iter1", "three rounds": "iter3"}.items():
        rows.append([
            label, spread(runs.metric(name, "judge/sentiment"), plain), spread(runs.metric(name, "win_rate"), percent),
            spread(runs.metric(name, "kl"), plain),
        ])  # fmt: skip
    yield table(["", "gold judge", "wins against SFT, %", "KL, nats"], rows)


def along(evaluations: Mapping[int, Rows]) -> Rows:
    """Means over seeds of each evaluation."""
    found = []
    for rows in zip(*evaluations.values(), strict=False):
        names = [name for name, value in rows[0].items() if isinstance(value, int | float)]
        found.append({name: fmean(row[name] for row in rows) for name in names})
    return found


def pictures(runs: Runs, out: Path) -> None:
    """One SVG a finding that is a curve."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "findings", "font.size": 10, "axes.spines.top": False})
    from matplotlib import pyplot

    def draw(name: str, x: str, y: str, curves: Mapping[str, tuple[Mapping[int, Rows], str, str, str]]) -> None:
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
        for label, (evaluations, across, up, colour) in curves.items():
            for rows in evaluations.values():
                axes.plot([row[across] for row in rows], [row[up] for row in rows], color=colour, alpha=0.25, lw=1)
            means = along(evaluations)
            axes.plot([row[across] for row in means], [row[up] for row in means], color=colour, lw=2, label=label)
        axes.set(xlabel=x, ylabel=y)
        axes.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)

    plain_ppo, mixed = runs.evaluations("cmp-ppo"), runs.evaluations("tax")
    draw("alignment_tax", "KL to SFT, nats a response", "held-out text loss, nats a token", {
        "PPO": (plain_ppo, "kl", "text_loss", "tab:red"), "PPO-ptx, γ = 0.5": (mixed, "kl", "text_loss", "tab:blue"),
    })  # fmt: skip
    draw("overoptimise", "KL to SFT, nats a response", "score", {
        "one reward model: the gold judge": (runs.evaluations("over"), "kl", "judge/sum", "tab:red"),
        "worst of three: the gold judge": (runs.evaluations("overens"), "kl", "judge/sum", "tab:blue"),
    })  # fmt: skip
    draw("best_of_n", "KL to SFT, nats a response", "lexicon judge", {
        "best of n": (curve(runs), "kl", "judge", "tab:blue"),
        "PPO": (runs.evaluations(PPO), "kl", "judge/sentiment", "tab:red"),
    })  # fmt: skip


def curve(runs: Runs) -> dict[int, Rows]:
    """Best of n as if n were time."""
    return {
        seed: [
            {"kl": one["metrics"][f"best_of_{n}/kl"], "judge": one["metrics"][f"best_of_{n}/judge/sentiment"]}
            for n in (1, 2, 4, 8, 16, 32, 64)
        ]
        for seed, one in runs.summaries("bon").items()
    }


def main() -> None:
    """All tables, then the pictures."""
    runs = Runs(Path(sys.argv[1]))
    for section in (algorithms, pairs, tax, over, best_of_n, bigger, iterated):
        print(f"## {(section.__doc__ or '').strip()}\n")
        for text in section(runs):
            print(text)
    if len(sys.argv) > 2:
        out = Path(sys.argv[2])
        out.mkdir(parents=True, exist_ok=True)
        pictures(runs, out)


if __name__ == "__main__":
    main()
