"""Which examples a step sees, and how batches are cut."""

from collections import Counter
from itertools import zip_longest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.batch import Packed
from rlhf_core.errors import UserError
from rlhf_core.packing import Order, per_token, within


def test_every_example_comes_once_an_epoch():
    order = Order(12, 4, seed=7)
    epochs = [[index for step in range(3 * epoch, 3 * epoch + 3) for index in order.batch(step)] for epoch in range(3)]
    assert all(sorted(seen) == list(range(12)) for seen in epochs)
    assert len({tuple(seen) for seen in epochs}) == 3  # each in an order of its own


def test_what_is_left_over_comes_up_in_other_epochs():
    order = Order(10, 4, seed=0)
    assert order.steps_per_epoch == 2
    seen = Counter(index for step in range(40) for index in order.batch(step))
    assert set(seen) == set(range(10))
    for epoch in range(20):
        both = order.batch(2 * epoch) + order.batch(2 * epoch + 1)
        assert len(set(both)) == 8


def test_a_batch_is_a_function_of_seed_and_step_alone():
    walked = Order(10, 3, seed=5)
    expected = [walked.batch(step) for step in range(20)]
    for step in (19, 0, 7, 7, 13):
        assert Order(10, 3, seed=5).batch(step) == expected[step] == walked.batch(step)
    torch.manual_seed(123)  # no global generator is asked, or moved
    before = torch.get_rng_state()
    assert Order(10, 3, seed=5).batch(4) == expected[4]
    assert torch.equal(torch.get_rng_state(), before)
    assert [Order(10, 3, seed=6).batch(step) for step in range(20)] != expected


def test_more_asked_than_there_is_takes_all():
    order = Order(3, 64, seed=0)
    assert (order.batch_size, order.steps_per_epoch) == (3, 1)
    assert sorted(order.batch(5)) == [0, 1, 2]


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match=r"^data: no rankings to train on"):
        Order(0, 4, seed=0, name="rankings")


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 12)), st.integers(1, 20))
def test_groups_keep_order_fit_the_budget_and_waste_no_room(sizes, budget):
    groups = list(within(sizes, budget))
    assert [index for group in groups for index in group] == list(range(len(sizes)))
    for group, following in zip_longest(groups, groups[1:]):
        total = sum(sizes[index] for index in group)
        assert total <= budget or len(group) == 1
        if following is not None:
            assert total + sizes[following[0]] > budget


@pytest.mark.parametrize("budget", [1, 4, 7, 1000])
def test_per_token_gives_the_same_for_any_budget(budget):
    sequences = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
    largest = []

    def function(part: Packed) -> torch.Tensor:
        largest.append(len(part.tokens))
        return part.tokens * 100 + part.positions

    expected = [100 * token + place for sequence in sequences for place, token in enumerate(sequence)]
    assert per_token(function, Packed.of(sequences), budget).tolist() == expected
    assert max(largest) <= max(budget, 5)
    assert len(largest) == {1: 4, 4: 3, 7: 2, 1000: 1}[budget]


def test_per_token_of_nothing():
    assert per_token(lambda part: part.tokens, Packed.of([]), 8).tolist() == []
