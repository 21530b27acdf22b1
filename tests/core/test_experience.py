"""Rollouts in one row: masks from lengths, selection, minibatches, and what is reported of them."""

from collections import Counter
from dataclasses import replace
from itertools import groupby, permutations

import pytest
import torch

from rlhf_core.batch import Packed
from rlhf_core.contracts.rollout import Rollout
from rlhf_core.experience import Experience, minibatches, neighbours, pack

PROMPTS = [[9, 0, 5], [0], [7, 7], [6, 5]]
RESPONSES = [[1, 2, 0], [3], [0, 0, 4, 0], [8, 0]]
"""Token 0 is the end token, and padding: prompts contain it, and responses hold it inside."""


@pytest.fixture
def experience():
    packed = Packed.of([prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)])
    flags = [[False] * len(p) + [True] * len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    mask = torch.tensor([flag for row in flags for flag in row])
    numbers = torch.arange(len(mask), dtype=torch.float32)
    rows = [(numbers + 100 * place) * mask for place in range(5)]
    return Experience(packed, mask, rows[0], rows[4], torch.tensor([1.0, 2.0, 4.0, 8.0]), rows[1], rows[2], rows[3])


def test_masks_come_from_lengths(experience):
    logprobs = [-torch.arange(1.0, len(response) + 1) for response in RESPONSES]
    packed, mask, packed_logprobs = pack(Rollout(PROMPTS, RESPONSES, logprobs, ["eos"] * 4), torch.device("cpu"))
    assert torch.equal(packed.tokens, experience.packed.tokens)
    assert torch.equal(mask, experience.mask)
    for row, flags, expected in zip(packed.split(packed_logprobs), packed.split(mask), logprobs, strict=True):
        assert torch.equal(row[flags], expected)
        assert not row[~flags].any()


def test_a_response_without_tokens_packs():
    packed, mask, logprobs = pack(Rollout([[1, 2]], [[]], [torch.zeros(0)], ["length"]), torch.device("cpu"))
    assert (packed.tokens.tolist(), mask.tolist(), logprobs.tolist()) == ([1, 2], [False, False], [0.0, 0.0])


def test_select_takes_whole_sequences_in_the_order_asked(experience):
    chosen = experience.select([2, 0])
    assert chosen.packed.tokens.tolist() == PROMPTS[2] + RESPONSES[2] + PROMPTS[0] + RESPONSES[0]
    assert chosen.packed.cu_seqlens.tolist() == [0, 6, 12]
    assert chosen.packed.cu_seqlens.dtype == torch.int32
    assert chosen.scores.tolist() == [4.0, 1.0]
    rows = torch.tensor([8, 9, 10, 11, 12, 13, 0, 1, 2, 3, 4, 5])
    for name in ("mask", "logprobs", "ref_logprobs", "values", "advantages", "returns", "kl"):
        assert torch.equal(getattr(chosen, name), getattr(experience, name)[rows]), name
    assert (chosen.moments, chosen.importance, chosen.rewards, chosen.steps) == (None,) * 4


def test_sums_a_sequence(experience):
    expected = [float(part.sum()) for part in experience.packed.split(experience.returns)]
    assert experience.per_sequence(experience.returns).tolist() == expected


def test_statistics_are_of_the_tokens_the_policy_chose(experience):
    statistics = experience.statistics()
    assert statistics["length"] == sum(map(len, RESPONSES)) / 4
    assert statistics["kl"] == pytest.approx(float(experience.kl.sum()) / 4)
    returns, values = experience.returns[experience.mask], experience.values[experience.mask]
    assert statistics["explained_variance"] == pytest.approx(1 - float((returns - values).var() / returns.var()))


def test_explained_variance_of_constant_returns_is_zero(experience):
    flat = replace(experience, returns=experience.mask * 2.0)
    assert flat.statistics()["explained_variance"] == 0.0


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_each_pass_takes_every_sequence_once(experience, budget):
    generator = torch.Generator().manual_seed(0)
    cut = list(minibatches(experience, 3, 2, budget, generator))
    assert len(cut) == 6
    for start in range(0, 6, 2):
        pieces = [part.experience for found in cut[start : start + 2] for part in found]
        assert Counter(torch.cat([piece.scores for piece in pieces]).tolist()) == Counter([1.0, 2.0, 4.0, 8.0])
    for number, parts in enumerate(cut):
        pieces = [part.experience for part in parts]
        tokens = sum(int(piece.mask.sum()) for piece in pieces)
        assert {(part.tokens, part.sequences, part.first) for part in parts} == {(tokens, 2, number == 0)}
        assert sum(len(piece.scores) for piece in pieces) == 2
        assert all(len(piece.packed.tokens) <= budget or len(piece.scores) == 1 for piece in pieces)


def test_the_cut_of_minibatches_does_not_depend_on_the_budget(experience):
    def order(budget: int) -> list[list[float]]:
        cut = minibatches(experience, 4, 2, budget, torch.Generator().manual_seed(3))
        return [[float(score) for part in parts for score in part.experience.scores] for parts in cut]

    assert order(1) == order(7) == order(1000)
    passes = [tuple(first + second) for first, second in zip(order(1)[::2], order(1)[1::2], strict=True)]
    assert len(set(passes)) > 1


SHARED = [[5, 6, 7], [5, 6, 7], [8, 9], [5, 6, 7], [5, 6, 7], [5, 6, 7], [8, 9], [8, 9]]
"""Runs of 2, 1, 3 and 2: equal prompts that lie apart have numbers of their own."""


@pytest.fixture
def grouped():
    """Eight responses; the score of each is its place."""
    responses = [[10 + place] * (1 + place % 3) for place in range(8)]
    logprobs = [-torch.arange(1.0, len(response) + 1) for response in responses]
    packed, mask, rows = pack(Rollout(SHARED, responses, logprobs, ["length"] * 8), torch.device("cpu"))
    return Experience(packed, mask, rows, rows, torch.arange(8.0), rows, rows, rows)


@pytest.mark.parametrize("budget", [1, 9, 1000])
@pytest.mark.parametrize("group", [2, 4])
def test_a_group_is_never_cut_apart(grouped, group, budget):
    seen = []
    for parts in minibatches(grouped, 3, 2, budget, torch.Generator().manual_seed(1), group=group):
        assert sum(len(part.experience.scores) for part in parts) == 4
        for part in parts:
            numbers = sorted(int(score) // group for score in part.experience.scores)
            assert all(numbers.count(number) == group for number in numbers)
            seen.append(tuple(numbers))
    assert len(seen) == {1: 24 // group, 9: len(seen), 1000: 6}[budget]


def test_fewer_groups_than_minibatches_and_none(experience):
    one, none = experience.select([2]), experience.select([])
    assert [len(parts) for parts in minibatches(one, 2, 3, 10, torch.Generator())] == [1, 1]
    assert list(minibatches(none, 2, 3, 10, torch.Generator())) == []


def runs(numbers):
    """The numbers, each run of equal ones once."""
    return [number for number, _ in groupby(numbers)]


def test_neighbours_brings_those_of_one_prompt_together(grouped):
    prompts = grouped.packed.prompts
    assert prompts == ((0, 3), (0, 3), (1, 2), (2, 3), (2, 3), (2, 3), (3, 2), (3, 2))
    assert neighbours([5, 0, 6, 3, 1, 7, 4], prompts) == [5, 3, 4, 0, 1, 6, 7]
    assert neighbours([2, 5, 3], prompts) == [2, 5, 3]
    assert neighbours([3, 1, 2], ()) == [3, 1, 2]
    assert neighbours([], prompts) == []


def test_neighbours_keeps_every_sequence_and_the_order_within_a_prompt(grouped):
    prompts = grouped.packed.prompts
    for order in permutations([0, 1, 3, 4, 6, 7]):
        found = neighbours(list(order), prompts)
        assert sorted(found) == sorted(order)
        numbers = [prompts[index][0] for index in found]
        assert len(runs(numbers)) == len(set(numbers))
        assert runs(numbers) == list(dict.fromkeys(prompts[index][0] for index in order))
        for number in set(numbers):
            same = [index for index in order if prompts[index][0] == number]
            assert [index for index in found if prompts[index][0] == number] == same


def test_select_keeps_prompts(grouped):
    chosen = grouped.select([4, 3, 0, 2])
    assert chosen.packed.prompts == ((2, 3), (2, 3), (0, 3), (1, 2))
    assert chosen.packed.costs == [3 + 2, 1, 3 + 1, 2 + 3]
    assert len(chosen.packed.folded.tokens) == sum(chosen.packed.costs)
    assert torch.equal(chosen.packed.folded.unfolded(chosen.packed.folded.tokens), chosen.packed.tokens)
    assert torch.equal(chosen.packed.predicted, chosen.mask)
    again = chosen.select([0, 1])
    assert again.packed.prompts == ((2, 3), (2, 3)) and len(again.packed.folded.tokens) == 3 + 2 + 1


def test_select_of_a_plain_row_shares_nothing(experience):
    chosen = experience.select([1, 1])
    assert chosen.packed.prompts == () and chosen.packed.folded.rows is None


@pytest.mark.parametrize("budget", [1, 9, 1000])
def test_minibatches_put_sequences_of_one_prompt_side_by_side(grouped, budget):
    whole = dict(zip(range(8), grouped.packed.split(grouped.packed.tokens), strict=True))
    orders = set()
    for parts in minibatches(grouped, 5, 2, budget, torch.Generator().manual_seed(1)):
        pieces = [part.experience for part in parts]
        numbers = [number for piece in pieces for number, _ in piece.packed.prompts]
        assert len(runs(numbers)) == len(set(numbers))
        orders.add(tuple(int(score) for piece in pieces for score in piece.scores))
        for piece in pieces:
            folded = piece.packed.folded
            assert len(folded.tokens) <= budget or len(piece.scores) == 1
            for score, tokens in zip(piece.scores, piece.packed.split(piece.packed.tokens), strict=True):
                assert torch.equal(tokens, whole[int(score)])
    assert len(orders) > 5


def test_a_budget_counts_a_shared_prompt_once(grouped):
    one = grouped.select([3, 4, 5])  # 3 prompt tokens, 1 + 2 + 3 of responses: 9 folded, 15 apart
    (parts,) = minibatches(one, 1, 1, 9, torch.Generator().manual_seed(0))
    assert [len(part.experience.scores) for part in parts] == [3] and parts[0].tokens == 6
    (parts,) = minibatches(one, 1, 1, 8, torch.Generator().manual_seed(0))
    assert len(parts) == 2
