"""Ragged batches against loops."""

from itertools import accumulate

import pytest
import torch

from rlhf_core.batch import IGNORED, Packed, following, offsets

SEQUENCES = [[4, 5, 6], [7], [], [8, 9]]


def test_offsets_lengths_and_membership():
    packed = Packed.of(SEQUENCES)
    assert packed.tokens.tolist() == [4, 5, 6, 7, 8, 9]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 4, 6]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.lengths.tolist() == [3, 1, 0, 2]
    assert packed.sequence.tolist() == [0, 0, 0, 1, 3, 3]


def test_positions_count_from_each_sequences_own_start():
    assert Packed.of(SEQUENCES).positions.tolist() == [0, 1, 2, 0, 0, 1]


def test_targets_never_cross_a_sequence():
    assert Packed.of(SEQUENCES).targets.tolist() == [5, 6, IGNORED, IGNORED, 9, IGNORED]


def test_following_moves_values_to_the_token_they_predict():
    packed = Packed.of(SEQUENCES)
    predicted = following(torch.where(packed.targets == IGNORED, 0, packed.targets))
    starts = packed.positions == 0
    assert torch.equal(predicted[~starts], packed.tokens[~starts])
    assert predicted[starts].tolist() == [0, 0, 0]


def test_split_gives_one_tensor_a_sequence():
    packed = Packed.of(SEQUENCES)
    assert [part.tolist() for part in packed.split(packed.tokens)] == SEQUENCES


def test_nothing_at_all():
    packed = Packed.of([])
    assert (len(packed.tokens), packed.cu_seqlens.tolist(), packed.positions.tolist()) == (0, [0], [])
    assert offsets([]).tolist() == [0]


A, B, C = [4, 5, 6], [7, 8], [9]
GROUPS = {
    "all shared": ([A, A, A], [[1], [2, 3], [1, 1, 1]]),
    "mixed": ([A, A, B, C, C, C], [[1, 2], [3], [2, 2], [], [1], []]),
    "equal prompts apart": ([A, B, A, A, B, B], [[1], [2], [3], [1, 2], [3, 3], [1]]),
    "only empty responses": ([A, A, B, B], [[], [], [], []]),
    "prompts of no tokens": ([[], [], A, A], [[1], [2], [3], []]),
    "single ones alone": ([A, B, A], [[1], [2], []]),
    "one begins like another": ([A, [*A, 1], [*A, 1]], [[1, 2], [2], [3]]),
}


@pytest.fixture(params=GROUPS.values(), ids=list(GROUPS))
def pairs(request):
    return request.param


def folded_by_hand(prompts, responses):
    """Parts with the position at which each starts, responses a prompt, and the place of every packed token."""
    parts, counts, rows, used, first = [], [], [], 0, 0
    while first < len(prompts):
        last = first + 1
        while last < len(prompts) and prompts[last] == prompts[first]:
            last += 1
        prompt = prompts[first]
        if last - first == 1:
            whole = prompt + responses[first]
            parts.append((whole, 0))
            counts.append(0)
            rows += range(used, used + len(whole))
            used += len(whole)
        else:
            parts.append((prompt, 0))
            counts.append(last - first)
            begin, used = used, used + len(prompt)
            for response in responses[first:last]:
                parts.append((response, len(prompt)))
                rows += [*range(begin, begin + len(prompt)), *range(used, used + len(response))]
                used += len(response)
        first = last
    return parts, counts, rows


def test_a_prompt_that_neighbours_share_is_there_once(pairs):
    prompts, responses = pairs
    packed = Packed.answers(prompts, responses)
    folded = packed.folded
    parts, counts, rows = folded_by_hand(prompts, responses)
    assert folded.tokens.tolist() == [token for part, _ in parts for token in part]
    assert folded.positions.tolist() == [start + place for part, start in parts for place in range(len(part))]
    assert folded.cu_seqlens.tolist() == [0, *accumulate(len(part) for part, _ in parts)]
    assert folded.cu_seqlens.dtype == torch.int32
    if any(counts):
        assert folded.responses_per_prompt.tolist() == counts
        assert folded.responses_per_prompt.dtype == torch.int32
        assert folded.rows.tolist() == rows
    else:  # the packed row itself
        assert folded.responses_per_prompt is None and folded.rows is None
        assert torch.equal(folded.tokens, packed.tokens) and torch.equal(folded.cu_seqlens, packed.cu_seqlens)


def test_unfolding_gives_every_sequence_its_own_prompt(pairs):
    packed = Packed.answers(*pairs)
    assert torch.equal(packed.folded.unfolded(packed.folded.tokens), packed.tokens)
    assert torch.equal(packed.folded.unfolded(packed.folded.positions), packed.positions)
    wide = torch.stack([packed.folded.tokens, -packed.folded.tokens], 1)
    assert torch.equal(packed.folded.unfolded(wide), torch.stack([packed.tokens, -packed.tokens], 1))


def test_answers_are_packed_as_if_nothing_were_shared(pairs):
    prompts, responses = pairs
    packed = Packed.answers(prompts, responses)
    plain = Packed.of([prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    for name in ("tokens", "cu_seqlens", "positions", "sequence", "lengths"):
        assert torch.equal(getattr(packed, name), getattr(plain, name)), name
    flags = [
        [False] * len(prompt) + [True] * len(response) for prompt, response in zip(prompts, responses, strict=True)
    ]
    assert [part.tolist() for part in packed.split(packed.predicted)] == flags
    assert plain.folded.rows is None and plain.prompts == ()


def test_targets_are_the_predicted_tokens_alone(pairs):
    prompts, responses = pairs
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        whole = prompt + response
        for place in range(len(whole)):
            after = place + 1
            expected.append(whole[after] if len(prompt) <= after < len(whole) else IGNORED)
    assert Packed.answers(prompts, responses).targets.tolist() == expected


def test_costs_are_what_each_sequence_adds(pairs):
    prompts, responses = pairs
    packed = Packed.answers(prompts, responses)
    expected = [
        len(response) if place and prompts[place - 1] == prompt else len(prompt) + len(response)
        for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    assert packed.costs == expected
    assert sum(packed.costs) == len(packed.folded.tokens)
    assert Packed(packed.tokens, packed.cu_seqlens).costs == packed.lengths.tolist()


def test_a_slice_is_the_row_of_its_own_sequences(pairs):
    prompts, responses = pairs
    whole = Packed.answers(prompts, responses)
    for first in range(len(prompts)):
        for last in range(first + 1, len(prompts) + 1):
            part, alone = whole.slice(first, last), Packed.answers(prompts[first:last], responses[first:last])
            for name in ("tokens", "cu_seqlens", "predicted", "positions", "targets"):
                assert torch.equal(getattr(part, name), getattr(alone, name)), name
            assert part.cu_seqlens.dtype == torch.int32
            assert part.costs == alone.costs
            assert part.folded.tokens.tolist() == alone.folded.tokens.tolist()
            assert (part.folded.rows is None) == (alone.folded.rows is None)
            if alone.folded.rows is not None:
                assert torch.equal(part.folded.rows, alone.folded.rows)
                assert torch.equal(part.folded.responses_per_prompt, alone.folded.responses_per_prompt)


def test_a_slice_of_a_plain_row_stays_plain():
    part = Packed.of(SEQUENCES).slice(1, 4)
    assert (part.tokens.tolist(), part.cu_seqlens.tolist()) == ([7, 8, 9], [0, 1, 1, 3])
    assert part.predicted is None and part.prompts == () and part.costs == [1, 0, 2]


def test_prompts_and_responses_have_to_pair():
    with pytest.raises(ValueError, match="shorter"):
        Packed.answers([A, B], [[1]])
