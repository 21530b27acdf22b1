"""preference_loss against the papers' formulas over Python floats (CORRECTNESS 25)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core import kernels

KINDS = ("dpo", "hinge", "ipo", "kto", "orpo", "simpo")
BETA = 0.3


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair_loss(kind: str, c: float, r: float, z: tuple[float, float], smoothing: float, margin: float) -> float:
    h = BETA * (c - r) - margin
    if kind in ("dpo", "simpo"):
        return -(1 - smoothing) * math.log(sigmoid(h)) - smoothing * math.log(sigmoid(-h))
    if kind == "hinge":
        return max(0.0, 1 - h)
    if kind == "ipo":
        return (c - r - 0.5 / BETA) ** 2
    if kind == "kto":
        return 0.5 * (1 - sigmoid(BETA * (c - z[1])) + 1 - sigmoid(BETA * (z[0] - r)))
    odds = [math.exp(x) / (1 - math.exp(x)) for x in (c, r)]
    return -c - BETA * math.log(sigmoid(math.log(odds[0] / odds[1])))


@given(
    kind=st.sampled_from(KINDS),
    pairs=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    reference=st.booleans(),
    lengths=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_equals_the_formula(kind: str, pairs: int, seed: int, reference: bool, lengths: bool, smoothing: float) -> None:
    random = torch.Generator().manual_seed(seed)
    names = ["chosen", "rejected"] + ["ref_chosen", "ref_rejected"] * (reference and kind not in ("orpo", "simpo"))
    case = {n: -3 * torch.rand(pairs, generator=random, dtype=torch.float64) - 0.1 for n in names}
    sizes = torch.randint(1, 9, (2, pairs), generator=random)
    options: dict = {"kind": kind, "beta": BETA}
    if kind in ("dpo", "simpo"):
        options["label_smoothing"] = smoothing
    if kind == "simpo":
        options["margin"] = 0.2
    if lengths and kind in ("ipo", "orpo", "simpo"):
        options |= {"chosen_lengths": sizes[0], "rejected_lengths": sizes[1]}
    ratios = []
    for i, side in enumerate(("chosen", "rejected")):
        ratio = case[side] - case.get(f"ref_{side}", 0)
        ratios.append((ratio / sizes[i] if f"{side}_lengths" in options else ratio).tolist())
    z = tuple(max(0.0, sum(ratio) / pairs) for ratio in ratios)
    smooth, margin = options.get("label_smoothing", 0.0), options.get("margin", 0.0)
    want = [pair_loss(kind, c, r, z, smooth, margin) for c, r in zip(*ratios, strict=True)]

    loss, metrics = kernels.preference_loss(**case, **options)
    assert loss.item() == pytest.approx(sum(want) / pairs, rel=1e-9)
    assert metrics["accuracy"].item() == pytest.approx(sum(c > r for c, r in zip(*ratios, strict=True)) / pairs)
    assert metrics["chosen_reward"].item() == pytest.approx(BETA * sum(ratios[0]) / pairs)
    gap = metrics["chosen_reward"] - metrics["rejected_reward"]
    assert metrics["reward_margin"].item() == pytest.approx(gap.item(), abs=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "kto"])  # z takes part in kto, without gradient
def test_gradients(kind: str) -> None:
    chosen, rejected = (-torch.rand(2, 4, dtype=torch.float64) - 0.1).unbind()
    leaves = (chosen.requires_grad_(), rejected.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: kernels.preference_loss(c, r, beta=BETA, kind=kind)[0], leaves)


def test_dpo_at_the_reference_is_log_two_and_pushes_by_half_beta() -> None:
    chosen, rejected = torch.tensor([-4.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    loss, metrics = kernels.preference_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=BETA)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-BETA / 2, BETA / 2))
    assert metrics["accuracy"] == 0.5


def test_ipo_divides_by_length() -> None:
    """Twice the tokens at twice the log-prob is the same loss."""
    one, two = torch.tensor([4]), torch.tensor([8])
    lengths = [{"chosen_lengths": n, "rejected_lengths": n} for n in (one, two)]
    losses = [
        kernels.preference_loss(torch.tensor([-2.0 * f]), torch.tensor([-3.0 * f]), beta=BETA, kind="ipo", **sizes)[0]
        for f, sizes in zip((1, 2), lengths, strict=True)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_stay_finite_and_no_pair_is_zero(kind: str) -> None:
    far = torch.tensor([-1e-9, -500.0], requires_grad=True)
    loss, _ = kernels.preference_loss(far, far.flip(0), beta=1.0, kind=kind)
    loss.backward()
    assert loss.isfinite() and far.grad.isfinite().all()
    assert kernels.preference_loss(torch.zeros(0), torch.zeros(0), beta=1.0, kind=kind)[0] == 0


def test_microbatches_add_up() -> None:
    case = torch.randn(4, 6)
    whole, _ = kernels.preference_loss(*case, beta=BETA)
    parts = [kernels.preference_loss(*part, beta=BETA, denominator=6.0)[0] for part in (case[:, :2], case[:, 2:])]
    torch.testing.assert_close(sum(parts), whole)


TWO = torch.zeros(2)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("kind", {"kind": "ppo"}),
        ("rejected", {"rejected": torch.zeros(3)}),
        ("ref_rejected", {"ref_chosen": TWO}),
        ("ref_chosen", {"ref_chosen": TWO, "ref_rejected": TWO, "kind": "orpo"}),
        ("chosen_lengths", {"chosen_lengths": TWO}),
        ("rejected_lengths", {"kind": "ipo", "chosen_lengths": TWO}),
        ("beta", {"beta": 0.0}),
        ("label_smoothing", {"label_smoothing": 0.5}),
        ("label_smoothing", {"label_smoothing": 0.1, "kind": "ipo"}),
        ("margin", {"margin": 1.0}),
    ],
)
def test_bad_input_is_named(argument: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.preference_loss(**{"chosen": TWO, "rejected": TWO, "beta": 0.1, **changes})
