"""The loss on rankings, with what people's ratings and ties add to it.

N responses, P pairs of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.batch import offsets
from rlhf_core.errors import UserError, one_of

from .rankings import Ranked


@dataclass
class RankingLoss:
    """The mean over rankings of the mean over their pairs of −log σ(s_better − s_worse − margin) + center·(s + s′)².

    ``ties=skip``: tied responses make no pair. ``ties=half``: such a pair counts as won half by each,
    −½·log σ(d) − ½·log σ(−d), without a margin; it is least at d = 0.
    """

    margin: str = "none"
    ties: str = "skip"
    center_coef: float = 0.0
    number: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Refuse words that are none of the choices."""
        one_of("algorithm.ties", self.ties, ("skip", "half"))
        if self.margin not in ("none", "ratings"):
            try:
                self.number = float(self.margin)
            except ValueError:
                self.number = float("nan")
            if not isfinite(self.number):
                raise UserError(f"algorithm.margin: got {self.margin!r}, expected none, ratings or a number")

    def check(self, rankings: Sequence[Ranked]) -> None:
        """Refuse rankings that lack what the margin needs."""
        without = sum(not ranking.ratings for ranking in rankings) if self.margin == "ratings" else 0
        if without:
            raise UserError(
                f"algorithm.margin: ratings, but {without} of {len(rankings)} rankings have none; "
                "take a number, or none (algorithm.ranking_files have no ratings)"
            )

    def count(self, rankings: Sequence[Ranked]) -> int:
        """How many rankings the mean is over."""
        return len(rankings) if self.ties == "half" else sum(ranking.informative for ranking in rankings)

    def __call__(self, scores: Tensor, rankings: Sequence[Ranked]) -> tuple[Tensor, Tensor]:
        """Loss (nats) and accuracy of ``[N]`` scores of all responses, ranking after ranking."""
        margin: Tensor | float | None = self.number
        if self.margin == "ratings":
            margin = scores.new_tensor([rating for ranking in rankings for rating in ranking.ratings])
        if self.ties == "half":
            return half_tied(scores, rankings, margin, self.center_coef)
        ranks = torch.tensor([rank for ranking in rankings for rank in ranking.ranks], device=scores.device)
        groups = offsets([len(ranking.ranks) for ranking in rankings], scores.device)
        return kernels.ranking_loss(scores, groups, ranks, margin=margin, center_coef=self.center_coef)


def half_tied(
    scores: Tensor, rankings: Sequence[Ranked], margin: "Tensor | float | None", center_coef: float
) -> tuple[Tensor, Tensor]:
    """The loss with ``ties=half``, and the accuracy, in which a tied pair is half right."""
    places, weights, untied, first = [], [], [], 0
    for ranking in rankings:
        ranks = ranking.ranks
        share = 2 / (len(ranks) * (len(ranks) - 1) * len(rankings))
        for i, j in permutations(range(len(ranks)), 2):
            if ranks[i] <= ranks[j]:
                tied = ranks[i] == ranks[j]  # such a pair comes twice, once in either order
                places.append((first + i, first + j))
                weights.append(share / 2 if tied else share)
                untied.append(not tied)
        first += len(ranks)
    better, worse = torch.tensor(places, device=scores.device).T
    weight, gap = scores.new_tensor(weights), torch.tensor(untied, device=scores.device)
    difference = scores[better] - scores[worse]
    by = margin[better] - margin[worse] if isinstance(margin, Tensor) else margin or 0.0
    terms = -F.logsigmoid(difference - gap * by) + center_coef * (scores[better] + scores[worse]).square()
    right = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (weight * terms).sum(), (weight * right).sum().detach()
