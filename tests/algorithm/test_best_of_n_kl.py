"""Best of n is at a KL of log n − (n − 1)/n to what it chooses from, where no two scores tie; with ties, below."""

import math

import pytest
import torch


def exact(probabilities, n):
    """KL of the best of n samples, by scores that rise with the index: P(best = i) = F_iⁿ − F_{i−1}ⁿ."""
    below = torch.cat([torch.zeros(1, dtype=torch.float64), probabilities.cumsum(0)])
    best = below[1:] ** n - below[:-1] ** n
    return float((best * (best / probabilities).log()).sum())


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64])
def test_the_formula_is_the_limit_of_many_outcomes(n):
    formula = math.log(n) - (n - 1) / n
    uniform = torch.full((100_000,), 1e-5, dtype=torch.float64)
    assert exact(uniform, n) == pytest.approx(formula, abs=1e-3)
    for seed in range(5):  # few outcomes: ties take some of it
        some = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
        assert exact(some / some.sum(), n) <= formula + 1e-12


def test_the_curve_says_so_for_each_power_of_two(start, ppo):
    started = start(*ppo("llama"), "algorithm=best_of_n", "algorithm.responses=8", "algorithm.eval_prompts=4")
    found = started.algorithm.best_of()
    kls = {name: value for name, value in found.items() if name.endswith("/kl")}
    assert kls == {f"best_of_{n}/kl": pytest.approx(math.log(n) - (n - 1) / n) for n in (1, 2, 4, 8)}
    rewards = [found[f"best_of_{n}/reward"] for n in (1, 2, 4, 8)]
    assert rewards == sorted(rewards) and rewards[0] < rewards[-1]
