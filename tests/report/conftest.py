"""Run folders as `rlhf train` and `rlhf pipeline` leave them, made of closed-form curves: no training, no torch."""

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.report import write_report

WORDS = [
    "warm",
    "funny",
    "quiet",
    "slow",
    "clumsy",
    "honest",
    "dull",
    "sharp",
    "the film",
    "a",
    "its cast",
    "and",
    "very",
]
PROMPTS = [
    "film review: The plot is",
    "product review: The battery of this",
    "film review: I had hoped for",
    "tweet: Just saw the",
    "editorial: The mayor's plan",
    "product review: After two weeks of use,",
    "film review: What a",
    "tweet: My new headphones are",
]
ENV = {
    "device": "cpu",
    "cpus": 2,
    "platform": "Linux x86_64",
    "python": "3.11.9",
    "versions": {"rlhf-core": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "triton": None},
    "kernels": {
        "used": {"shaped_gae": {"backend": "cpu", "why_not_faster": "cuda: no CUDA device"}},
        "available": [{"op": "shaped_gae", "backend": "eager", "available": True, "reason": ""}],
    },
}


def write_json(path: Path, content: object) -> None:
    """One JSON document, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """A JSON object a line, as the jsonl tracker writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def common(
    folder: Path, algorithm: str, seconds: float, steps: int, config: str, final: dict[str, float], headline: str
) -> None:
    """What every stage's folder holds beside its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    overrides = [f"algorithm={algorithm}", "policy=tiny", "data=human_ratings", "seed=3"]
    (folder / "overrides.txt").write_text("\n".join(overrides) + "\n", encoding="utf-8")
    names = {"algorithm": algorithm, "policy": "tiny", "data": "human_ratings", "tracker": "jsonl"}
    ours = {"distribution": "rlhf", "version": "0.1.0", "file": "rlhf_plugins/x.py"}
    write_json(folder / "plugins.json", [{"kind": kind, "name": name} | ours for kind, name in names.items()])
    write_json(folder / "env.json", ENV)
    clock = [
        {
            "step": step,
            "seconds": seconds * (step + 1) / (steps + 1),
            "peak_rss_mib": 700 + 500 * (1 - math.exp(-step / 20)),
        }
        for step in range(steps + 1)
    ]
    write_lines(folder / "timing.jsonl", list(clock))
    (folder / "log.txt").write_text(f"{steps} steps of {algorithm}\nwrote result/\n", encoding="utf-8")
    started = {"algorithm": algorithm, "started": "2026-03-14T09:26:53+00:00", "seconds": seconds}
    write_json(folder / "summary.json", started | {"metrics": final, "headline": headline})


def write_lm(folder: Path, algorithm: str = "lm", steps: int = 300, start: float = 7.6, end: float = 3.9) -> Path:
    """A language-model stage: pretraining or demonstrations."""
    noise = random.Random(1)
    rows: list[dict[str, object]] = []
    held = start
    for step in range(steps + 1):
        loss = end + (start - end) * math.exp(-5 * step / steps)
        if step:
            train = {"loss": loss - 0.08 * step / steps + noise.gauss(0, 0.06), "lr": 1e-3 * (1 - step / steps)}
            train |= {"grad_norm": 1.2 + noise.random(), "tokens": 4096.0}
            rows.append({"step": step, "phase": "train"} | train)
        if step % (steps // 10) == 0:
            held = loss + 0.05
            rows.append({"step": step, "phase": "eval", "loss": held, "perplexity": math.exp(held)})
    write_lines(folder / "metrics.jsonl", rows)
    final = {"loss": held, "perplexity": math.exp(held)}
    config = f"seed: 3\nsteps: {steps}\nalgorithm:\n  lr: 0.001\npolicy:\n  layers: 4\n  width: 128\n"
    common(folder, algorithm, 0.28 * steps, steps, config, final, f"Held-out loss {held:.3f} nats a token.")
    return folder


def write_reward_model(folder: Path, steps: int = 240) -> Path:
    """A reward model stage on human rankings."""
    noise = random.Random(2)
    rows: list[dict[str, object]] = []
    for step in range(steps + 1):
        grown = 1 - math.exp(-4 * step / steps)
        if step:
            train = {"loss": 0.693 - 0.16 * grown + noise.gauss(0, 0.02), "lr": 5e-4}
            train |= {"accuracy": 0.5 + 0.24 * grown + noise.gauss(0, 0.04), "grad_norm": 0.8 + noise.random()}
            rows.append({"step": step, "phase": "train"} | train)
        if step % 24 == 0:
            accuracy = 0.5 + 0.221 * grown + noise.gauss(0, 0.004)
            evals = {"loss": 0.693 - 0.12 * grown, "accuracy": accuracy, "accuracy_all": accuracy - 0.06 * grown}
            rows.append({"step": step, "phase": "eval"} | evals)
    write_lines(folder / "metrics.jsonl", rows)
    final = {"accuracy": 0.7134, "accuracy_low": 0.6981, "accuracy_high": 0.7288, "accuracy_all": 0.655}
    final |= {"human": 0.9412, "chance": 0.5, "length": 0.5217, "sentiment": 0.7253, "loss": 0.578}
    config = "seed: 3\nsteps: 240\nalgorithm:\n  lr: 0.0005\n  ranks: 9\npolicy:\n  layers: 4\n  width: 128\n"
    common(folder, "reward_model", 74.2, steps, config, final, "Agrees with 0.713 of held-out pairs.")
    return folder


def write_ppo(folder: Path, steps: int = 60, kl_coef: float = 0.05, name: str = "ppo", decline: bool = True) -> Path:
    """A PPO stage whose judge, with `decline`, peaks before the end while the proxy reward goes on rising."""
    noise = random.Random(int(kl_coef * 1000))
    rows: list[dict[str, object]] = []
    final: dict[str, float] = {}
    for step in range(steps + 1):
        row = ppo_row(step / steps, noise, kl_coef, decline)
        if step:
            rows.append({"step": step, "phase": "train"} | row | ppo_update(step / steps, noise, kl_coef))
        if step % 6 == 0:
            win = 0.5 + 0.35 * (row["judge/sentiment"] - 0.08) / 0.55
            final = {key: row[key] for key in ("reward", "kl", "length", "eos_frac")}
            final |= {name: value for name, value in row.items() if name.startswith("judge/")}
            final |= {"win_rate": win, "win_rate_low": win - 0.05, "win_rate_high": win + 0.05}
            rows.append({"step": step, "phase": "eval"} | final)
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "samples.jsonl", list(ppo_samples(steps)))
    final |= {"reward_start": 0.02, "reward_gain_sd": (final["reward"] - 0.02) / 0.95}
    final |= {"length_ratio": final["length"] / 17, "judge_start/sentiment": 0.08, "judge_start/brevity": 0.4}
    config = (
        f"seed: 3\nsteps: {steps}\nalgorithm:\n  kl_coef: {kl_coef}\n  kl_target: 8.0\n  clip: 0.2\n  ptx_coef: 0.1\n"
        f"run: {folder}\npolicy:\n  path: {folder.parent}/sft/result\nreward:\n  parts:\n    learned: {{weight: 1.0}}\n"
    )
    headline = f"Reward {final['reward_gain_sd']:+.2f} SD at KL {final['kl']:.1f}."
    common(folder, name, 88.4, steps, config, final, headline)
    return folder


def ppo_row(t: float, noise: random.Random, kl_coef: float, decline: bool) -> dict[str, float]:
    """What is seen of a batch of responses at the part `t` of the run."""
    kl = (14 + 0.4 / max(kl_coef, 0.01)) * (1 - math.exp(-2.2 * t))
    judge = 0.08 + 0.62 * (1 - math.exp(-3 * t)) - (0.35 * max(0.0, t - 0.6) if decline else 0)
    reward = 0.02 + 2.1 * (1 - math.exp(-2 * t)) + noise.gauss(0, 0.05)
    return {
        "reward": reward,
        "reward_std": 0.95 - 0.2 * t,
        "kl": kl + noise.gauss(0, 0.3) * (t > 0),
        "length": 17 - 4.5 * t + noise.gauss(0, 0.3),
        "eos_frac": 0.8 + 0.15 * t,
        "judge/sentiment": judge,
        "judge/brevity": 0.4 + 0.1 * t,
        "reward/learned": reward - 0.05,
        "reward/brevity": 0.05,
    }


def ppo_update(t: float, noise: random.Random, kl_coef: float) -> dict[str, float]:
    """What is seen of the optimiser's steps."""
    return {
        "kl_coef": kl_coef * (1 + t),
        "entropy": 3.1 - 1.2 * t + noise.gauss(0, 0.05),
        "policy_loss": -0.02 + noise.gauss(0, 0.004),
        "value_loss": 0.4 * math.exp(-3 * t) + 0.1 + noise.random() * 0.03,
        "approx_kl": 0.012 + noise.random() * 0.006,
        "clip_frac": 0.11 + noise.gauss(0, 0.02),
        "ratio_mean": 1.0 + noise.gauss(0, 0.001),
        "ratio_max": 1.6 + noise.random() * 0.4,
        "value_clip_frac": 0.05,
        "explained_variance": 0.75 * (1 - math.exp(-4 * t)) + noise.gauss(0, 0.03),
        "grad_norm": 0.7 + noise.random() * 0.3,
        "lr": 3e-5,
        "first_ratio_max": 1.0 + 2e-6 * noise.random(),
    }


def ppo_samples(steps: int) -> Iterator[dict[str, object]]:
    """The same held-out prompts at the start and the end; the tokens of a response join to its text."""
    noise = random.Random(7)
    for step in (0, steps // 2, steps):
        for prompt in PROMPTS:
            tokens = [f" {noise.choice(WORDS)}" for _ in range(noise.randint(7, 18))] + ["."]
            start = "".join(f" {noise.choice(WORDS)}" for _ in range(noise.randint(10, 22))) + "."
            kl = [noise.gauss(0.5 * step / steps, 0.6) for _ in tokens]
            gain = 1.8 * step / steps
            yield {
                "step": step,
                "prompt": prompt,
                "response": "".join(tokens),
                "baseline": start,
                "scores": {"reward": noise.gauss(gain, 0.5), "sentiment": noise.gauss(0.3 * gain, 0.2)},
                "baseline_scores": {"reward": noise.gauss(0, 0.9), "sentiment": noise.gauss(0.08, 0.3)},
                "stop": "eos" if noise.random() < 0.85 else "length",
                "tokens": tokens,
                "kl": kl,
                "advantages": [noise.gauss(0.1, 0.8) for _ in tokens],
            }


def write_stage(
    folder: Path, algorithm: str, train: dict[str, list[float]], held_out: dict[str, list[float]], config: str = ""
) -> Path:
    """A stage of any algorithm from its curves: training rows at steps 1, 2 …, held-out rows at 0, 1 …"""
    rows: list[dict[str, object]] = []
    for first, phase, curves in ((1, "train", train), (0, "eval", held_out)):
        for step in range(max(map(len, curves.values()), default=0)):
            row = {name: values[step] for name, values in curves.items()}
            rows.append({"step": first + step, "phase": phase} | row)
    write_lines(folder / "metrics.jsonl", rows)
    final = {name: values[-1] for name, values in held_out.items()}
    common(folder, algorithm, 30.0, len(rows), config or "seed: 3\n", final, f"{algorithm} is done.")
    return folder


def write_stages(folder: Path, **stages: Callable[[Path], Path]) -> Path:
    """A pipeline of stages by their names, each made by a function of its folder."""
    for name, make in stages.items():
        make(folder / name)
    rows = [{"name": name, "folder": name, "status": "done", "seconds": 30.0} for name in stages]
    write_json(folder / "pipeline.json", {"name": folder.name, "stages": rows})
    return folder


def write_pipeline(folder: Path, kl_coef: float = 0.05, decline: bool = True) -> Path:
    """All four stages, done."""
    write_lm(folder / "pretrain")
    write_lm(folder / "sft", "sft", steps=120, start=4.2, end=3.5)
    write_reward_model(folder / "reward_model")
    write_ppo(folder / "ppo", kl_coef=kl_coef, decline=decline)
    seconds = {"pretrain": 84.0, "sft": 33.6, "reward_model": 74.2, "ppo": 88.4}
    stages = [{"name": name, "folder": name, "status": "done", "seconds": time} for name, time in seconds.items()]
    commands = [{"command": f"rlhf train run={name} seed=3"} for name in seconds]
    write_json(
        folder / "pipeline.json",
        {"name": "default", "stages": [stage | command for stage, command in zip(stages, commands, strict=True)]},
    )
    return folder


class Page(HTMLParser):
    """What a browser would find: elements with their attributes and text, scripts apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.raw = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.raw = ""

    def handle_data(self, data: str) -> None:
        if self.raw == "script" and self.elements[-1][1].get("type") == "application/json":
            assert "<" not in data, "could end the script element"
            self.figures.append(json.loads(data))
        elif self.raw == "script":
            self.scripts.append(data)
        elif not self.raw:
            self.words.append(data)

    def of_class(self, name: str) -> list[dict[str, str]]:
        """Attributes of the elements of a class."""
        return [attrs for _, attrs in self.elements if name in attrs.get("class", "").split()]

    def titles(self) -> list[str]:
        """What each drawn chart is called, in the order of `figures`."""
        return [attrs["aria-label"].partition(".")[0] for attrs in self.of_class("plot")]

    def figure(self, title: str) -> dict[str, Any]:
        """The first chart of this title."""
        return self.figures[self.titles().index(title)]


@pytest.fixture(scope="session")
def show(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Page]:
    """Write the page of these folders and parse it."""

    def shown(*folders: Path) -> Page:
        return Page(write_report(list(folders), tmp_path_factory.mktemp("page") / "report.html"))

    return shown


@pytest.fixture(scope="session")
def page(pipeline: Path, show: Callable[..., Page]) -> Page:
    """The page of the finished pipeline."""
    return show(pipeline)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pipeline; read only."""
    return write_pipeline(tmp_path_factory.mktemp("runs") / "default")


@pytest.fixture
def make_ppo(tmp_path: Path) -> Callable[..., Path]:
    """Write a PPO run under a name: `make_ppo("a", kl_coef=0.1)`."""
    return lambda name, **settings: write_ppo(tmp_path / name, **settings)


@pytest.fixture
def make_pipeline(tmp_path: Path) -> Callable[..., Path]:
    """Write a pipeline under a name."""
    return lambda name, **settings: write_pipeline(tmp_path / name, **settings)


@pytest.fixture
def make_lm(tmp_path: Path) -> Callable[..., Path]:
    """Write a language-model run under a name."""
    return lambda name, **settings: write_lm(tmp_path / name, **settings)


@pytest.fixture
def make_stage(tmp_path: Path) -> Callable[..., Path]:
    """Write a stage of any algorithm under a name, from its curves."""
    return lambda name, *settings: write_stage(tmp_path / name, *settings)


@pytest.fixture
def make_stages(tmp_path: Path) -> Callable[..., Path]:
    """Write a pipeline of any stages, each ``stage_name=(algorithm, train, held_out)``."""

    def make(name: str, **stages: tuple[Any, ...]) -> Path:
        makers = {stage: partial(write_stage, algorithm=a, train=b, held_out=c) for stage, (a, b, c) in stages.items()}
        return write_stages(tmp_path / name, **makers)

    return make
