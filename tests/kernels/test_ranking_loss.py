"""ranking_loss against a loop over pairs (CORRECTNESS 12, 16)."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core import kernels
from rlhf_core.batch import offsets


def loop(scores: list[float], bounds: list[int], ranks: list[float], margin, center: float) -> tuple[float, float]:
    losses, accuracies = [], []
    for a, b in pairwise(bounds):
        pairs = [(i, j) for i, j in permutations(range(a, b), 2) if ranks[i] < ranks[j]]
        if not pairs:
            continue
        total, right = 0.0, 0.0
        for i, j in pairs:
            gap = margin[i] - margin[j] if isinstance(margin, list) else margin or 0.0
            total += math.log1p(math.exp(-(scores[i] - scores[j] - gap))) + center * (scores[i] + scores[j]) ** 2
            right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        losses.append(total / len(pairs))
        accuracies.append(right / len(pairs))
    return (sum(losses) / len(losses), sum(accuracies) / len(accuracies)) if losses else (0.0, 0.0)


@given(
    sizes=st.lists(st.integers(0, 6), max_size=6),
    seed=st.integers(0, 2**31),
    margin=st.sampled_from([None, 0.5, "ratings"]),
    center=st.sampled_from([0.0, 0.1]),
)
def test_equals_the_loop(sizes: list[int], seed: int, margin, center: float) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (sum(sizes),), generator=random) + torch.rand(1, generator=random).double()
    ranks = torch.randint(0, 4, (sum(sizes),), generator=random)
    if margin == "ratings":
        margin = torch.randn(sum(sizes), generator=random, dtype=torch.float64)
    leaf = scores.clone().requires_grad_()
    options = {"margin": margin, "center_coef": center}
    loss, accuracy = kernels.ranking_loss(leaf, offsets(sizes), ranks, **options)
    plain = margin.tolist() if torch.is_tensor(margin) else margin
    want = loop(scores.tolist(), offsets(sizes).tolist(), ranks.tolist(), plain, center)
    assert (loss.item(), accuracy.item()) == pytest.approx(want, rel=1e-9)
    loss.backward()
    if len(scores) < 8:
        assert torch.autograd.gradcheck(lambda s: kernels.ranking_loss(s, offsets(sizes), ranks, **options)[0], leaf)


def test_two_responses_are_the_pairwise_loss() -> None:
    chosen, rejected = torch.randn(2, 10)
    scores = torch.stack([chosen, rejected], 1).flatten()
    loss, accuracy = kernels.ranking_loss(scores, offsets([2] * 10), torch.tensor([1, 2]).repeat(10))
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(chosen - rejected).mean())
    torch.testing.assert_close(accuracy, (chosen > rejected).float().mean())


def test_order_of_responses_does_not_matter() -> None:
    scores, ranks = torch.randn(6, dtype=torch.float64), torch.tensor([3, 1, 1, 5, 2, 4])
    first = kernels.ranking_loss(scores, offsets([6]), ranks)
    order = torch.randperm(6)
    again = kernels.ranking_loss(scores[order], offsets([6]), ranks[order])
    torch.testing.assert_close(first, again)


def test_all_tied_is_zero_with_zero_gradient() -> None:
    scores = torch.randn(5, requires_grad=True)
    loss, accuracy = kernels.ranking_loss(scores, offsets([3, 2]), torch.ones(5), center_coef=1.0)
    loss.backward()
    assert loss == accuracy == 0 and not scores.grad.any()


def test_far_apart_scores_stay_finite() -> None:
    """-logsigmoid, never log(1 + exp)."""
    scores = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss, _ = kernels.ranking_loss(scores, offsets([2]), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 1000 and scores.grad.tolist() == [-1, 1]


def test_microbatches_add_up() -> None:
    scores, ranks = torch.randn(9), torch.tensor([0, 1, 2, 0, 0, 1, 0, 2, 1])
    whole = kernels.ranking_loss(scores, offsets([3, 2, 4]), ranks)  # the second prompt is tied
    parts = [
        kernels.ranking_loss(scores[a:b], offsets(sizes), ranks[a:b], denominator=2.0)
        for a, b, sizes in ((0, 5, [3, 2]), (5, 9, [4]))
    ]
    torch.testing.assert_close(whole, tuple(sum(both) for both in zip(*parts, strict=True)))


def test_bfloat16_scores_are_compared_in_float32() -> None:
    loss, accuracy = kernels.ranking_loss(torch.randn(4).bfloat16(), offsets([4]), torch.arange(4))
    assert loss.dtype == accuracy.dtype == torch.float32


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("scores", {"scores": torch.zeros(4, dtype=torch.int64)}),
        ("ranks", {"ranks": torch.zeros(3)}),
        ("cu_seqlens", {"cu_seqlens": offsets([3])}),
        ("cu_seqlens", {"cu_seqlens": torch.tensor([0, 4])}),
        ("margin", {"margin": torch.zeros(1)}),
        ("denominator", {"denominator": 0}),
        ("denominator", {"denominator": torch.ones(2)}),
    ],
)
def test_bad_input_is_named(argument: str, changes: dict) -> None:
    good = {"scores": torch.zeros(4), "cu_seqlens": offsets([4]), "ranks": torch.zeros(4)}
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.ranking_loss(**{**good, **changes})
