"""Checks of the reward model's loss on rankings.

K responses to a prompt.
"""

from typing import Any

import torch

from ..check import Check, Prompts, loss_and_gradient
from ..oracles.preference import ranking_loss as oracle

KWISE = "CORRECTNESS 16; arXiv:2203.02155"


def _check(name: str, asserts: str, why: str, scores: list[list[float]], ranks: list[list[int]], **more: Any) -> Check:
    inputs = {"scores": Prompts(scores), "ranks": Prompts(ranks)}
    expected = oracle(scores, ranks)
    return Check("ranking_loss", name, asserts, KWISE, why, inputs, expected, loss_and_gradient("scores"), **more)


CHECKS = (
    _check("pairs", "two responses a prompt: the mean over prompts of −log σ(better − worse)",
           "the wrong sign trains the opposite", [[0.3, -0.5], [1.2, 1.5], [-2.0, 0.1]], [[0, 1], [0, 1], [1, 0]]),
    _check("k_wise", "the mean over prompts of the mean over their C(K,2) pairs, K being 4 and 2",
           "one mean over all pairs weights a prompt by K(K−1)/2", [[0.5, -0.2, 1.1, 0.0], [0.3, 0.9]],
           [[1, 3, 0, 2], [0, 1]]),
    _check("order", "the order of the responses does not matter: the ranking of k_wise in another order",
           "a loss that compares neighbours, or the first with the rest, depends on it",
           [[0.0, 1.1, 0.5, -0.2], [0.9, 0.3]], [[2, 0, 1, 3], [1, 0]]),
    _check("ties", "tied responses make no pair, and do not count in the mean",
           "they would be pushed apart in whatever order they came", [[0.5, -0.2, 0.1]], [[0, 1, 1]]),
    _check("all_tied", "a prompt whose responses are all tied gives 0, with zero gradient", "0/0 would end the run",
           [[0.5, -0.2, 0.1]], [[2, 2, 2]]),
    _check("tied_prompt", "nor does it count in the mean over prompts",
           "undecided raters would shrink the others' gradient",
           [[0.5, -0.2], [0.3, 0.4]], [[0, 1], [1, 1]]),
    _check("large_scores", "scores of ±1e4 in float32: −log σ is 0 or 2e4, its gradient 0 or 1; log(1 + exp) is not",
           "one outlier would make every weight NaN", [[1e4, -1e4], [-1e4, 1e4]], [[0, 1], [0, 1]],
           dtype=torch.float32),
)  # fmt: skip
