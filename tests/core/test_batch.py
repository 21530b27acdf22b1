"""Ragged batches against loops."""

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
