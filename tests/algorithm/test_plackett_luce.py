"""Plackett–Luce: draws have its probabilities, and a reward model finds its utilities at the rate theory gives."""

import json
import math
from collections import Counter
from itertools import combinations, permutations

import pytest
import torch

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Samples
from rlhf_core.trainer import Trainer
from rlhf_plugins.algorithm.plackett_luce import ranks_of, utilities

WORDS = ("ask", "one", "two", "three", "four", "five", "six")
TRUE = torch.tensor([0.0, 0.9, -0.6, 0.4, -1.1, 1.2, -0.8], dtype=torch.float64)


def probability(order, values):
    """Of an order, best first: each place is won against all that are left."""
    left, found = list(order), 1.0
    for winner in order:
        found *= math.exp(values[winner]) / sum(math.exp(values[other]) for other in left)
        left.remove(winner)
    return found


def drawn(values, temperature, count, seed=0):
    """How often each order, best first, comes up."""
    generator = torch.Generator().manual_seed(seed)
    ranks = (ranks_of(utilities(values, temperature, generator)) for _ in range(count))
    return Counter(tuple(sorted(range(len(values)), key=rank.__getitem__)) for rank in ranks)


def test_two_responses_are_ordered_as_bradley_and_terry_have_it():
    count, temperature = 20_000, 0.5
    wins = drawn([0.3, -0.1], temperature, count)[0, 1]
    p = 1 / (1 + math.exp(-0.4 / temperature))
    assert abs(wins - count * p) < 4 * math.sqrt(count * p * (1 - p))
    assert abs(wins - count * 0.6) > 4 * math.sqrt(count * 0.24)  # at temperature 1 it would be σ(0.4) ≈ 0.6


def test_orders_of_three_have_their_probabilities():
    values, temperature, count = [1.0, 0.2, -0.5], 0.8, 20_000
    seen = drawn(values, temperature, count)
    expected = {
        order: count * probability(order, [v / temperature for v in values]) for order in permutations(range(3))
    }
    assert sum(expected.values()) == pytest.approx(count)
    chi2 = sum((seen[order] - number) ** 2 / number for order, number in expected.items())
    assert chi2 < 20.5  # 0.1 % of χ² with 5 degrees of freedom are above


def test_a_judge_who_is_sure_ranks_by_score():
    assert utilities([0.5, -2.0, 0.5], 0.0, torch.Generator()) == [0.5, -2.0, 0.5]
    assert ranks_of([0.5, -2.0, 0.7]) == (1, 2, 0)
    assert ranks_of([0.5, 0.5, 0.7, -1]) == (1, 1, 0, 3)


def test_a_tie_is_with_the_best_of_its_rank():
    values = [0.0, 0.1, 0.2, 0.3, 5.0]
    assert ranks_of(values, tie=0.11) == (3, 3, 1, 1, 0)  # 0.3 and 0.2 share a rank, and 0.1 is too far from 0.3
    assert ranks_of(values, tie=10) == (0, 0, 0, 0, 0)
    assert ranks_of(values) == (4, 3, 2, 1, 0)


def rankings(count, size, seed):
    """Rows of ``count`` rankings of ``size`` words, drawn from the model with utilities ``TRUE``."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        chosen = torch.randperm(len(WORDS), generator=generator)[:size].tolist()
        ranks = ranks_of(utilities(TRUE[chosen].tolist(), 1.0, generator))
        yield {"prompt": "ask", "responses": [WORDS[word] for word in chosen], "ranks": list(ranks)}


def standard_error(size):
    """√n × the RMS error of centred utilities: the sandwich H⁺JH⁺ of the mean over pairs, by enumeration."""
    count = len(WORDS)
    hessian, variance = torch.zeros(count, count).double(), torch.zeros(count, count).double()
    subsets = list(combinations(range(count), size))
    for subset in subsets:
        for order in permutations(subset):
            p = probability(order, TRUE.tolist()) / len(subsets)
            gradient = torch.zeros(count).double()
            for better, worse in combinations(order, 2):
                lost = torch.sigmoid(TRUE[worse] - TRUE[better]) / math.comb(size, 2)
                direction = torch.zeros(count).double()
                direction[better], direction[worse] = 1.0, -1.0
                gradient -= lost * direction
                hessian += p * lost * torch.sigmoid(TRUE[better] - TRUE[worse]) * direction.outer(direction)
            variance += p * gradient.outer(gradient)
    inverse = torch.linalg.pinv(hessian)
    return math.sqrt(float((inverse @ variance @ inverse).trace()) / count)


def test_the_standard_error_of_pairs_is_that_of_logistic_regression():
    """K = 2: the information equality holds, so the sandwich is the inverse of the information."""
    information = torch.zeros(len(WORDS), len(WORDS)).double()
    pairs = list(combinations(range(len(WORDS)), 2))
    for i, j in pairs:
        p = torch.sigmoid(TRUE[i] - TRUE[j]) * torch.sigmoid(TRUE[j] - TRUE[i]) / len(pairs)
        information[[i, j], [i, j]] += p
        information[[i, j], [j, i]] -= p
    expected = math.sqrt(float(torch.linalg.pinv(information).trace()) / len(WORDS))
    assert standard_error(2) == pytest.approx(expected)


@pytest.fixture
def learned(start, small_world, tmp_path):
    """The centred scores of a reward model that learned from ``count`` rankings of four words."""

    def learn(count, seed):
        file = tmp_path / "drawn.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rankings(count, 4, seed)))
        words = [word for word in small_world.overrides if not word.startswith(("algorithm.", "rollout.", "reward="))]
        steps, batch = 80, min(count, 200)  # enough that what is left is the error of the data
        started = start(
            *words, "algorithm=reward_model", "algorithm.use_data=false", f"algorithm.ranking_files=[{file}]",
            f"algorithm.batch_size={batch}", f"algorithm.epochs={steps * batch / count}",
            "algorithm.optimizer.lr=1e-2", "algorithm.optimizer.weight_decay=0",
            "algorithm.optimizer.warmup_steps=5",
        )  # fmt: skip
        trainer = Trainer(started.run, started.algorithm)
        assert trainer.total == steps
        trainer.fit()
        scores = started.algorithm.scorer.score(Samples([Prompt(text="ask")] * len(WORDS), WORDS)).double()
        return scores - scores.mean()

    return learn


def test_a_reward_model_recovers_utilities_with_an_error_of_one_over_root_n(learned):
    """Mean squares over four data sets each: 4 · √F(24, 24) is between 2.5 and 6.5 in 98 % of cases."""
    few, many = 100, 1600
    truth, unit = TRUE - TRUE.mean(), standard_error(4)
    errors = {n: [float((learned(n, seed) - truth).square().mean()) for seed in range(4)] for n in (few, many)}
    rms = {n: math.sqrt(sum(squares) / len(squares)) for n, squares in errors.items()}
    for n, error in rms.items():
        assert 0.5 < error / (unit / math.sqrt(n)) < 1.6, (n, error, unit / math.sqrt(n))
    assert 2.5 < rms[few] / rms[many] < 6.5, rms
