"""Advantages without a critic, against loops over responses and their tokens."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlhf_core.advantages import group_advantages, leave_one_out, per_token, regularised, rewards_to_go, step_advantages
from rlhf_core.batch import Packed
from rlhf_core.experience import Experience

PROMPTS = [[1, 2], [1, 2], [3], [3], [4, 5, 6], [4, 5, 6]]
CHOSEN = ["110011", "1", "", "0110", "111", "000"]
"""Which tokens of each response the policy chose; one response is empty, of one it chose none."""
STEPS = [[(0, 0.5), (3, -1.0), (5, 2.0)], [(0, 1.5)], [], [(1, -0.25), (2, 0.75)], [], []]
"""Places of steps' last tokens and their rewards; one of the first response's is a token that was put there."""
SCORES = [1.0, -2.0, 0.5, 3.0, 7.0, 7.0]
ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}


@pytest.fixture
def old():
    """Six responses, in float64; log-probs are other than 0 on prompts and on tokens that were not chosen too."""
    packed = Packed.answers(PROMPTS, [[7] * len(flags) for flags in CHOSEN])
    flags = [[False] * len(prompt) + [flag == "1" for flag in row] for prompt, row in zip(PROMPTS, CHOSEN, strict=True)]
    mask = torch.tensor([flag for row in flags for flag in row])
    generator = torch.Generator().manual_seed(0)
    logprobs, reference = (-torch.rand(2, len(mask), generator=generator, dtype=torch.float64) * 3).unbind()
    rewards, steps = torch.zeros(len(mask), dtype=torch.float64), torch.zeros(len(mask), dtype=torch.bool)
    for start, prompt, given in zip(packed.cu_seqlens.tolist(), PROMPTS, STEPS, strict=False):
        for place, reward in given:
            rewards[start + len(prompt) + place], steps[start + len(prompt) + place] = reward, True
    zeros = torch.zeros_like(logprobs)
    scores = torch.tensor(SCORES, dtype=torch.float64)
    return Experience(packed, mask, logprobs, reference, scores, zeros, zeros, zeros, rewards=rewards, steps=steps)


def rows(old, values):
    """One list of floats a response: its tokens', without the prompt."""
    split = zip(old.packed.split(values), PROMPTS, strict=True)
    return [row[len(prompt) :].tolist() for row, prompt in split]


def close(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    flat = [[value for row in table for value in row] for table in (found, expected)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-12)


@pytest.mark.parametrize("scale_by_std", [True, False])
@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_scores_within_their_group(group, scale_by_std):
    expected = []
    for start in range(0, 6, group):
        part = SCORES[start : start + group]
        spread = statistics.pstdev(part) + 1e-4 if scale_by_std else 1.0
        expected += [(score - statistics.fmean(part)) / spread for score in part]
    found = group_advantages(torch.tensor(SCORES, dtype=torch.float64), group, scale_by_std=scale_by_std)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_scores_less_the_mean_of_the_others(group):
    expected = []
    for place, score in enumerate(SCORES):
        first = place - place % group
        others = [SCORES[other] for other in range(first, first + group) if other != place]
        expected.append(score - statistics.fmean(others) if others else 0.0)
    assert leave_one_out(torch.tensor(SCORES, dtype=torch.float64), group).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("score", [0.1, 1e-3, 333.3, -123456.7])
@pytest.mark.parametrize("group", [3, 7, 8])
def test_a_group_whose_scores_are_all_alike_has_exactly_nothing(score, group):
    """Rounding of a mean, over a standard deviation of 0, would be an advantage: 0.4 of it at a score of 1000."""
    alike = torch.full((2 * group,), score)
    assert not group_advantages(alike, group).any()
    assert not group_advantages(alike, group, scale_by_std=False).any()
    assert not leave_one_out(alike, group).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("steps", [True, False])
def test_whole_responses_less_their_kl(old, estimator, kl_coef, steps):
    old = old if steps else replace(old, rewards=None, steps=None)
    expected = []
    table = zip(SCORES, STEPS, CHOSEN, rows(old, old.logprobs), rows(old, old.ref_logprobs), strict=True)
    for score, given, flags, logprobs, reference in table:
        total = score + sum(reward for _, reward in given) * steps
        for flag, one, other in zip(flags, logprobs, reference, strict=True):
            total -= kl_coef * ESTIMATORS[estimator](one - other) * (flag == "1")
        expected.append(total)
    assert regularised(old, kl_coef, estimator).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rewards_to_go(old, estimator, gamma):
    """Σ_{k≥t} γ^{k−t}·(r_k − β·KL_k) over chosen tokens; a step's reward on another token is nobody's."""
    beta, expected = 0.3, []
    table = zip(SCORES, STEPS, CHOSEN, rows(old, old.logprobs), rows(old, old.ref_logprobs), strict=True)
    for score, given, flags, logprobs, reference in table:
        chosen = [place for place, flag in enumerate(flags) if flag == "1"]
        own = [
            dict(given).get(t, 0.0) - beta * ESTIMATORS[estimator](logprobs[t] - reference[t])
            + score * (t == chosen[-1])
            for t in chosen
        ]  # fmt: skip
        row = [0.0] * len(flags)
        for number, t in enumerate(chosen):
            row[t] = sum(gamma**k * reward for k, reward in enumerate(own[number:]))
        expected.append(row)
    found = rewards_to_go(old, beta, estimator, gamma)
    close(rows(old, found.advantages), expected)
    flat = [value for row, flags in zip(expected, CHOSEN, strict=True)
            for value, flag in zip(row, flags, strict=True) if flag == "1"]  # fmt: skip
    assert float(found.mean) == pytest.approx(statistics.fmean(flat))
    assert float(found.var) == pytest.approx(statistics.pvariance(flat))


@pytest.mark.parametrize("scale_by_std", [True, False])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_rewards_of_steps_are_compared_in_the_group_and_summed_from_each_token_on(old, group, scale_by_std):
    expected = []
    for start in range(0, 6, group):
        members = range(start, start + group)
        everything = [reward for member in members for _, reward in STEPS[member]]
        mean = statistics.fmean(everything) if everything else 0.0
        spread = statistics.pstdev(everything) + 1e-4 if everything and scale_by_std else 1.0
        for member in members:
            compared = [(place, (reward - mean) / spread) for place, reward in STEPS[member]]
            expected.append([
                sum(value for place, value in compared if place >= t) * (flag == "1")
                for t, flag in enumerate(CHOSEN[member])
            ])  # fmt: skip
    found = step_advantages(old, group, scale_by_std=scale_by_std)
    close(rows(old, found), expected)
    assert not found[~old.mask].any()


def test_steps_that_are_all_rewarded_alike_teach_nothing(old):
    alike = replace(old, rewards=torch.where(old.steps, 333.3, 0.0).float())
    assert float(step_advantages(alike, 2).abs().max()) < 1e-6


def test_sums_from_each_token_on_do_not_drift(old):
    """One running sum over a long row: the others' rewards must not cost a response its digits."""
    large = torch.where(old.packed.sequence < 2, old.rewards * 1e7, old.rewards)
    found = step_advantages(replace(old, rewards=large.float()), 2, scale_by_std=False)
    close(rows(old, found)[2:], rows(old, step_advantages(old, 2, scale_by_std=False))[2:])


def test_every_chosen_token_gets_its_responses_value(old):
    found = per_token(old, old.scores)
    close(
        rows(old, found), [[score * (flag == "1") for flag in row] for score, row in zip(SCORES, CHOSEN, strict=True)]
    )
    assert not found[~old.mask].any()
