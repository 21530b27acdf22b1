"""How often a reward orders two held-out responses as their raters did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean
from typing import Any, ClassVar

from rlhf_core.contracts.data import split_named
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.contracts.reward import Reward, Samples
from rlhf_core.errors import UserError
from rlhf_core.packing import spaced
from rlhf_core.run import Run

from ..reward.sentiment import Sentiment

Pair = tuple[int, int, int]
"""Ranking, index of the better response, index of the worse one."""


@dataclass
class RankingAccuracy:
    """Pairwise agreement with held-out human rankings, beside the human ceiling, chance, length and other rewards.

    A pair counts where the mean ratings differ by ``min_gap`` or more; where the data have no ratings, where the ranks
    differ. Ties of a score count one half.
    """

    rlhf_api: ClassVar[int] = 1

    split: str = "test"
    min_gap: float = 0.5  # least difference of two mean ratings
    limit: int = 1000  # most rankings measured
    baselines: dict[str, Any] = field(default_factory=lambda: {"sentiment": Sentiment()})  # name → reward

    def setup(self, run: Run) -> None:
        """Read the rankings, and measure once what does not change."""
        split = split_named(self.split, "evaluator.ranking_accuracy.split")
        self.rankings = spaced(run.data.rankings(split), self.limit)
        self.pairs = list(self._pairs(self.min_gap))
        self.all_pairs = list(self._pairs(0.0))
        if not self.pairs:
            raise UserError(
                f"evaluator.ranking_accuracy.split: no two responses in {self.split!r} differ by min_gap={self.min_gap}"
            )
        for baseline in self.baselines.values():
            baseline.setup(run)
        self.beside = {
            name: self._agreement(self._scores(reward), self.pairs) for name, reward in self.baselines.items()
        }
        self.beside["length"] = self._agreement(
            [[float(len(r)) for r in row.responses] for row in self.rankings], self.pairs
        )
        self.beside["chance"] = 0.5
        if all(row.ratings for row in self.rankings):
            self.beside["human"] = fmean(self._one_rater(pair) for pair in self.pairs)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Accuracy of the subject's scorer with a 95 % interval, and of everything beside it."""
        if subject.scorer is None:
            return {}
        scores = self._scores(subject.scorer)
        accuracy = self._agreement(scores, self.pairs)
        low, high = self._interval(scores)
        everything = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
        everything["accuracy_all"] = self._agreement(scores, self.all_pairs)
        return everything | self.beside | {"pairs": float(len(self.pairs))}

    def _pairs(self, gap: float) -> Iterator[Pair]:
        for number, row in enumerate(self.rankings):
            values = [fmean(ratings) for ratings in row.ratings] if row.ratings else [-rank for rank in row.ranks]
            least = gap if row.ratings else 0.0
            for better, high in enumerate(values):
                for worse, low in enumerate(values):
                    if high > low and high - low >= least:
                        yield number, better, worse

    def _scores(self, reward: Reward) -> list[list[float]]:
        prompts = [row.prompt for row in self.rankings for _ in row.responses]
        flat = reward.score(
            Samples(prompts, [response for row in self.rankings for response in row.responses])
        ).tolist()
        places = iter(flat)
        return [[next(places) for _ in row.responses] for row in self.rankings]

    def _agreement(self, scores: Sequence[Sequence[float]], pairs: Sequence[Pair]) -> float:
        return fmean(won(scores[row][better], scores[row][worse]) for row, better, worse in pairs)

    def _interval(self, scores: Sequence[Sequence[float]]) -> tuple[float, float]:
        """95 % interval; the ranking, not the pair, is the independent unit (the linearised variance of a ratio)."""
        wins: dict[int, list[float]] = {}
        for row, better, worse in self.pairs:
            wins.setdefault(row, []).append(won(scores[row][better], scores[row][worse]))
        rate, total = fmean(win for row in wins.values() for win in row), len(self.pairs)
        error = sqrt(sum(sum(win - rate for win in row) ** 2 for row in wins.values())) / total
        return rate - 1.96 * error, rate + 1.96 * error

    def _one_rater(self, pair: Pair) -> float:
        """How often a single rater of each response orders them as the other raters' means do."""
        row, better, worse = pair
        return one_against_the_rest(self.rankings[row].ratings[better], self.rankings[row].ratings[worse])


def one_against_the_rest(better: Sequence[float], worse: Sequence[float]) -> float:
    """Agreement of rater i of both responses with the mean of all the others, averaged over i; ties count one half."""
    agreements = []
    for i in range(min(len(better), len(worse))):
        rest = (sum(better) - better[i]) / (len(better) - 1) - (sum(worse) - worse[i]) / (len(worse) - 1)
        if rest:
            agreements.append(won(better[i], worse[i]) if rest > 0 else won(worse[i], better[i]))
    return fmean(agreements) if agreements else 0.5


def won(better: float, worse: float) -> float:
    """1 where the better response scores higher, ½ on a tie."""
    return float(better > worse) + 0.5 * float(better == worse)
