"""CORRECTNESS 22: a response beside the others to its prompt; alone it is worth 0, and nothing is divided by 0."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.advantages import group_advantages, leave_one_out


@given(group=st.integers(2, 6), groups=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_the_mean_of_the_others(group, groups, seed):
    scores = torch.randn(group * groups, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, expected = scores.tolist(), []
    for place, score in enumerate(rows):
        first = place - place % group
        others = [rows[other] for other in range(first, first + group) if other != place]
        expected.append(score - sum(others) / len(others))
    torch.testing.assert_close(leave_one_out(scores, group), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("found", [leave_one_out, group_advantages])
def test_one_response_has_no_others(found):
    assert found(torch.tensor([3.0, -2.0, 1e30]), 1).tolist() == [0.0, 0.0, 0.0]
    assert found(torch.zeros(0), 1).tolist() == []


@pytest.mark.parametrize("found", [leave_one_out, group_advantages])
def test_scores_that_are_all_alike_are_worth_nothing(found):
    assert found(torch.full((8,), -7.5), 4).tolist() == [0.0] * 8


def test_the_std_is_the_populations():
    """Of 0 and 2 it is 1, where ÷ (n − 1) would give √2."""
    found = group_advantages(torch.tensor([0.0, 2.0], dtype=torch.float64), 2)
    assert found.tolist() == pytest.approx([-1 / 1.0001, 1 / 1.0001], rel=1e-12)
