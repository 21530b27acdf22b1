"""token_logprobs, logprobs_from_logits, linear_policy_loss against float64 and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core import kernels


def loop(logits: list[list[float]], targets: list[int], temperature: float) -> tuple[list[float], list[float]]:
    logprobs, entropies = [], []
    for row, target in zip(logits, targets, strict=True):
        z = [value / temperature for value in row]
        top = max(z)
        total = top + math.log(sum(math.exp(value - top) for value in z))
        logprobs.append(0.0 if target == -100 else z[target] - total)
        entropies.append(0.0 if target == -100 else -sum(math.exp(v - total) * (v - total) for v in z if v > -math.inf))
    return logprobs, entropies


@st.composite
def cases(draw: st.DrawFn) -> dict:
    rows, size, vocabulary = draw(st.integers(0, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 13))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    targets = torch.randint(0, vocabulary, (rows,), generator=random)
    targets[torch.rand(rows, generator=random) < 0.3] = -100
    return {
        "hidden": torch.randn(rows, size, generator=random, dtype=torch.float64),
        "weight": torch.randn(vocabulary, size, generator=random, dtype=torch.float64),
        "bias": draw(st.sampled_from([None, torch.randn(vocabulary, generator=random, dtype=torch.float64)])),
        "targets": targets,
        "temperature": draw(st.sampled_from([1.0, 0.7, 3.0])),
    }


@given(case=cases())
def test_equal_the_loop(case: dict) -> None:
    logits = case["hidden"] @ case["weight"].T + (0 if case["bias"] is None else case["bias"])
    want = loop(logits.tolist(), case["targets"].tolist(), case["temperature"])
    rest = {"temperature": case["temperature"]}
    found = (
        kernels.token_logprobs(**case, entropy=True),
        kernels.logprobs_from_logits(logits, case["targets"], **rest, entropy=True),
    )
    for pair in found:
        for got, numbers in zip(pair, want, strict=True):
            torch.testing.assert_close(got, torch.tensor(numbers, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert torch.equal(kernels.token_logprobs(**case), found[0][0])
    assert torch.equal(kernels.logprobs_from_logits(logits, case["targets"], **rest), found[1][0])
    assert (found[0][0] <= 0).all()


def test_gradients() -> None:
    hidden, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 3), (5, 3), (5,)))
    targets = torch.tensor([0, 4, -100, 2, 2, 1])

    def head(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.token_logprobs(h, w, targets, bias=b, temperature=0.8, entropy=True)

    assert torch.autograd.gradcheck(head, (hidden, weight, bias))


def test_ignored_rows_get_no_gradient_and_never_leak() -> None:
    """−100: 0, and NaN in such a row reaches neither the head nor its gradient."""
    hidden, weight = torch.randn(4, 3), torch.randn(7, 3, requires_grad=True)
    targets = torch.tensor([1, -100, 6, -100])
    gradients = []
    for dirt in (0.0, math.nan):
        rows = hidden.clone()
        rows[1] = dirt
        rows.requires_grad_()
        logprobs, entropy = kernels.token_logprobs(rows, weight, targets, entropy=True)
        assert logprobs[[1, 3]].tolist() == entropy[[1, 3]].tolist() == [0, 0]
        found = torch.autograd.grad((logprobs + entropy).sum(), (rows, weight))
        assert not found[0][[1, 3]].any()
        gradients.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    logits = torch.full((1, 3), math.nan, requires_grad=True)
    found = kernels.logprobs_from_logits(logits, torch.tensor([-100]), entropy=True)
    (found[0] + found[1]).sum().backward()
    assert not logits.grad.any()


def test_impossible_tokens() -> None:
    """A logit of −inf: probability 0, entropy of the rest, finite gradient."""
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    logprobs, entropy = kernels.logprobs_from_logits(logits, torch.tensor([0]), entropy=True)
    assert logprobs.item() == pytest.approx(-math.log(2))
    assert entropy.item() == pytest.approx(math.log(2))
    (logprobs + entropy).sum().backward()
    assert logits.grad.isfinite().all()
    assert kernels.logprobs_from_logits(logits, torch.tensor([2])).item() == -math.inf


def test_bfloat16_costs_only_its_inputs() -> None:
    """CORRECTNESS 26: float32 from the accumulator; logits kept in bfloat16 would be off by up to 4e-3."""
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(1000, 32).bfloat16()
    targets = torch.randint(0, 1000, (64,))
    found = kernels.token_logprobs(hidden, weight, targets)
    assert found.dtype == torch.float32
    want = kernels.token_logprobs(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=2e-5)
    rounded = kernels.logprobs_from_logits(hidden @ weight.T, targets)
    assert (rounded - want).abs().max() > 1e-3


def test_linear_policy_loss_is_the_composition() -> None:
    hidden, weight = torch.randn(12, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    targets, mask = torch.randint(0, 9, (12,)), torch.rand(12) < 0.8
    targets[3] = -100
    old, advantages, values = torch.randn(3, 12, dtype=torch.float64)
    options = {"values": values, "old_values": values + 1, "returns": values - 1, "entropy_coef": 0.1, "clip_high": 0.3}
    results = []
    for fused in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            loss, metrics = kernels.linear_policy_loss(
                h, w, targets, old, advantages, temperature=0.9, mask=mask, **options
            )
        else:
            logprobs, entropy = kernels.token_logprobs(h, w, targets, temperature=0.9, entropy=True)
            kept = mask & (targets != -100)
            loss, metrics = kernels.ppo_loss(logprobs, old, advantages, mask=kept, entropy=entropy, **options)
        results.append([loss.detach(), *metrics.values(), *torch.autograd.grad(loss, (h, w))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


GOOD = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "targets": torch.tensor([0, 4])}


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("hidden", torch.zeros(2, 3, 1)),
        ("weight", torch.zeros(5, 4)),
        ("weight", torch.zeros(5, 3, dtype=torch.bfloat16)),
        ("bias", torch.zeros(4)),
        ("targets", torch.tensor([0, 5])),
        ("targets", torch.tensor([0, -1])),
        ("targets", torch.tensor([0, 1, 2])),
        ("targets", torch.tensor([0, 1], dtype=torch.int32)),
        ("temperature", 0.0),
    ],
)
def test_bad_input_is_named(argument: str, bad: object) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.token_logprobs(**{**GOOD, argument: bad})
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.linear_policy_loss(**{**GOOD, argument: bad}, old_logprobs=torch.zeros(2), advantages=torch.zeros(2))


def test_a_typo_in_an_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="clip_hihg"):
        kernels.linear_policy_loss(**GOOD, old_logprobs=torch.zeros(2), advantages=torch.zeros(2), clip_hihg=0.3)
