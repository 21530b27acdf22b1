"""How often the policy's response is preferred to the start model's, by a judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any, ClassVar

from torch import Tensor

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.contracts.reward import Samples
from rlhf_core.run import Run
from rlhf_core.sampling import samples_of
from rlhf_core.text import encode_prompt

from ..policy.hf import HF
from ..reward.sentiment import Sentiment


@dataclass
class WinRate:
    """Wins against the baseline on the same prompts, ties split, with a 95 % Wilson interval.

    The judge is any reward. Each pair is judged twice with the two responses in swapped places, and the verdicts are
    averaged: a judge that prefers whatever comes first gains nothing by it.
    """

    rlhf_api: ClassVar[int] = 1

    judge: Any = None  # a reward plugin, by +reward@evaluator.win_rate.judge=NAME; null: the lexicon rule
    against: str | None = None  # a checkpoint whose answers are the baseline; null: the answers of the start

    def setup(self, run: Run) -> None:
        """Load the judge."""
        self.run = run
        self.judge = self.judge or Sentiment()
        self.judge.setup(run)
        self._opponent: Samples | None = None  # its answers, once the prompts are known

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The share of prompts on which the subject's response is preferred, and the judge's mean scores."""
        if subject.samples is None or subject.baseline is None or not len(subject.samples):
            return {}
        baseline = subject.baseline if self.against is None else self._answers(self.against, subject.samples.prompts)
        now, before = self._score(subject.samples), self._score(baseline)
        swapped_before, swapped_now = self._score(baseline), self._score(subject.samples)
        forward, backward = verdicts(now, before), verdicts(swapped_before, swapped_now)
        wins = [(first + 1 - second) / 2 for first, second in zip(forward, backward, strict=True)]
        low, high = wilson(sum(wins), len(wins))
        name = type(self.judge).__name__.lower()
        means = {f"judge/{name}": fmean(now), f"judge_start/{name}": fmean(before)}
        return {"win_rate": sum(wins) / len(wins), "win_rate_low": low, "win_rate_high": high} | means

    def _answers(self, path: str, prompts: Sequence[Prompt]) -> Samples:
        """What the model at ``path`` says to the same prompts, with the rollout's settings; sampled once."""
        if self._opponent is None:
            model = HF(path=path).language_model(self.run.data)
            model.model.to(self.run.device)
            ids = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
            found = self.run.rollout.generate(model, ids, self.run.generator("opponent"))
            self._opponent = samples_of(model, prompts, found)
        return self._opponent

    def _score(self, samples: Samples) -> Sequence[float]:
        scores: Tensor = self.judge.score(samples)
        return scores.tolist()


def verdicts(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """For each prompt 1 where the first response scores higher, 0 where the second, ½ on a tie."""
    return [float(a > b) + 0.5 * float(a == b) for a, b in zip(first, second, strict=True)]


def wilson(wins: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927)."""
    rate, extra = wins / count, z * z / count
    centre = (rate + extra / 2) / (1 + extra)
    half = z * sqrt(rate * (1 - rate) / count + extra / (4 * count)) / (1 + extra)
    return centre - half, centre + half
