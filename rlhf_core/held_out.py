"""How the policy answers held-out prompts, beside how it answered them before training."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .contracts.data import split_named
from .contracts.evaluator import Subject, measure
from .contracts.reward import Samples
from .errors import UserError, at_least
from .experience import Experience, Scored, sample_and_score
from .jsonl import JsonLines
from .language_model import LanguageModel
from .packing import spaced

if TYPE_CHECKING:
    from .run import Run

Observe = Callable[[Scored], Experience]
"""Puts sampled responses beside the reference, and gives them what advantages an algorithm knows."""


class HeldOut:
    """The start model's answers, made once, and the comparison with the policy's."""

    def __init__(self, run: "Run", policy: LanguageModel, split: str, count: int) -> None:
        """Take ``count`` prompts of a split, evenly spaced, and answer them with the untrained policy."""
        at_least(1, algorithm__eval_prompts=count)
        self.run, self.policy = run, policy
        self.prompts = spaced(run.data.prompts(split_named(split, "algorithm.eval_split")), count)
        if not self.prompts:
            raise UserError(f"algorithm.eval_split: the data have no prompts in {split!r}")
        self.start = self.answers()
        self.samples = JsonLines(run.folder / "samples.jsonl")

    def answers(self) -> Scored:
        """The policy's answers; the same random numbers each time."""
        return sample_and_score(self.run, self.policy, self.prompts, self.run.generator("held-out"))

    def evaluate(self, step: int, observe: Observe, shown: int = 16) -> dict[str, float]:
        """Means over held-out prompts and the evaluators' verdicts; ``shown`` samples go to samples.jsonl."""
        now = self.answers() if step else self.start
        experience = observe(now)
        statistics = experience.statistics()
        metrics = {name: statistics[name] for name in ("kl", "length")} | {"eos_frac": now.metrics["eos_frac"]}
        if self.run.settings.reward is not None:
            metrics |= now.metrics | gain("", now.totals, self.start.totals)
        for name, scores in now.parts.items():
            metrics |= gain(f"/{name}", scores, self.start.parts[name])
        metrics["length_ratio"] = metrics["length"] / max(1e-8, float(self.start.mask.sum()) / len(self.prompts))
        subject = Subject(samples=now.samples, baseline=self.start.samples, policy=self.policy)
        metrics |= measure(self.run.evaluators, subject)
        for index in range(min(shown, len(self.prompts))):
            self.samples.append({"step": step, **self.sample(index, now, experience, first=step == 0)})
        return metrics

    def sample(self, index: int, now: Scored, experience: Experience, first: bool) -> dict[str, Any]:
        """One sample with what each of its tokens cost in KL and earned in advantage."""
        samples, start = now.samples, self.start.samples
        row = experience.select([index])
        ids = samples.response_ids[index]
        response = slice(len(row.mask) - len(ids), None)
        return {
            "prompt": samples.prompts[index].shown,
            "response": samples.responses[index],
            "baseline": None if first else start.responses[index],
            "scores": {"reward": float(now.totals[index]), **self.judged(samples, index)},
            "baseline_scores": {"reward": float(self.start.totals[index]), **self.judged(start, index)},
            "stop": samples.stops[index],
            "tokens": [self.policy.tokenizer.decode([token]) for token in ids],
            "kl": [round(value, 4) for value in row.kl[response].tolist()],
            "advantages": [round(value, 4) for value in row.advantages[response].tolist()],
        }

    def judged(self, samples: Samples, index: int) -> dict[str, float]:
        """What each judge gives one response."""
        one = Samples([samples.prompts[index]], [samples.responses[index]])
        judges = (evaluator.judge for evaluator in self.run.evaluators.values() if hasattr(evaluator, "judge"))
        return {type(judge).__name__.lower(): float(judge.score(one)[0]) for judge in judges}

    def headline(self, metrics: dict[str, float]) -> str:
        """What changed, in one line."""
        gains = {} if "reward_gain_sd" not in metrics else {"reward": metrics["reward_gain_sd"]}
        gains |= {name: metrics[f"reward_gain_sd/{name}"] for name in self.start.parts}
        text = "".join(f"{name} {value:+.1f} SD, " for name, value in gains.items())
        text += f"KL {metrics['kl']:.1f} nats, length {metrics['length_ratio']:.0%}"
        return text + (f", wins {metrics['win_rate']:.0%}" if "win_rate" in metrics else "")


def gain(suffix: str, scores: Tensor, start: Tensor) -> dict[str, float]:
    """The mean of scores, that of the start's, and the difference in standard deviations of the start's."""
    mean, before, spread = float(scores.mean()), float(start.mean()), float(start.std(correction=0))
    gained = (mean - before) / (spread or 1.0)  # where the start's scores are all alike, the plain difference
    return {f"reward{suffix}": mean, f"reward_start{suffix}": before, f"reward_gain_sd{suffix}": gained}
