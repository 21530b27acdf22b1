"""shaped_gae against a loop over Python floats; every backend."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core import kernels
from rlhf_core.batch import offsets

KL = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}


def loop(case: dict) -> dict[str, list[float]]:
    """The formula a token at a time: first the list of valid tokens, then backwards over it."""
    tokens = len(case["values"])
    found = {name: [0.0] * tokens for name in ("advantages", "returns", "kl")}
    bounds = case["cu_seqlens"].tolist()
    numbers = {name: tensor.tolist() for name, tensor in case.items() if torch.is_tensor(tensor)}
    for b in range(len(bounds) - 1):
        valid = [t for t in range(bounds[b], bounds[b + 1]) if "mask" not in numbers or numbers["mask"][t]]
        following, carried = (numbers["bootstrap"][b] if "bootstrap" in numbers else 0.0), 0.0
        for t in reversed(valid):
            reward = numbers["rewards"][t] if "rewards" in numbers else 0.0
            if "logprobs" in numbers:
                found["kl"][t] = KL[case["kl_estimator"]](numbers["logprobs"][t] - numbers["ref_logprobs"][t])
                reward -= case["kl_coef"] * found["kl"][t]
            if t == valid[-1]:
                limit = case["score_clip"] if case["score_clip"] is not None else math.inf
                reward += max(-limit, min(limit, numbers["scores"][b]))
            delta = reward + case["gamma"] * following - numbers["values"][t]
            carried = delta + case["gamma"] * case["lam"] * carried
            following = numbers["values"][t]
            found["advantages"][t], found["returns"][t] = carried, carried + following
    return found


@st.composite
def cases(draw: st.DrawFn, lengths: st.SearchStrategy) -> dict:
    sizes = draw(lengths)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = sum(sizes)

    def normal(size: int) -> torch.Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64)

    case = {
        "scores": normal(len(sizes)),
        "values": normal(tokens),
        "cu_seqlens": offsets(sizes),
        "gamma": draw(st.sampled_from([1.0, 0.9, 0.0])),
        "lam": draw(st.sampled_from([0.0, 0.95, 1.0])),
        "score_clip": draw(st.sampled_from([None, 0.5])),
    }
    if draw(st.booleans()):
        chance = draw(st.sampled_from([0.0, 0.3, 0.8]))
        case["mask"] = torch.rand(tokens, generator=random) < chance
    if draw(st.booleans()):
        case["rewards"] = normal(tokens)
    if draw(st.booleans()):
        case["bootstrap"] = normal(len(sizes))
    if draw(st.booleans()):
        estimator = draw(st.sampled_from(sorted(KL)))
        case |= {"logprobs": -normal(tokens).abs(), "ref_logprobs": -normal(tokens).abs()}
        case |= {"kl_coef": 0.3, "kl_estimator": estimator}
    return case


def check(case: dict, backend: str, tolerance: float = 1e-12) -> kernels.GAE:
    found, want = kernels.shaped_gae(**case, backend=backend), loop(case)
    for name, numbers in want.items():
        expected = torch.tensor(numbers, dtype=torch.float64)
        torch.testing.assert_close(getattr(found, name), expected, rtol=tolerance, atol=tolerance)
    valid = case.get("mask", torch.ones(len(case["values"]), dtype=torch.bool))
    kept = torch.tensor(want["advantages"], dtype=torch.float64)[valid]
    assert found.count == len(kept)
    assert found.mean.item() == pytest.approx(kept.mean().item() if len(kept) else 0.0, abs=1e-12)
    assert found.var.item() == pytest.approx(kept.var(unbiased=False).item() if len(kept) else 0.0, abs=1e-11)
    return found


@given(case=cases(st.lists(st.integers(0, 9), max_size=40)))
def test_equals_the_loop(case: dict, gae_backend: str) -> None:
    check(case, gae_backend)


@given(case=cases(st.lists(st.sampled_from([0, 1, 3, 63, 64, 65, 127, 128, 129, 1023]), min_size=1, max_size=4)))
def test_equals_the_loop_across_tiles(case: dict, gae_backend: str) -> None:
    check(case, gae_backend, tolerance=1e-10)


def test_gap_example(gae_backend: str) -> None:
    """CORRECTNESS 6."""
    found = kernels.shaped_gae(
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([0.5, 0.4, 9, 9, 0.3], dtype=torch.float64),
        offsets([5]),
        mask=torch.tensor([True, True, False, False, True]),
        rewards=torch.tensor([0, 0, 0, 0, 1], dtype=torch.float64),
        gamma=1.0,
        lam=0.95,
        backend=gae_backend,
    )
    want = torch.tensor([0.43675, 0.565, 0, 0, 0.7], dtype=torch.float64)
    torch.testing.assert_close(found.advantages, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lengths", "last"), [([3, 2], [2, 4]), ([1], [0]), ([0, 2, 0], [1])])
def test_score_lands_on_the_last_token(lengths: list[int], last: list[int], gae_backend: str) -> None:
    """CORRECTNESS 5; γ = 0 makes the advantage the reward itself."""
    scores = torch.arange(1.0, len(lengths) + 1)
    found = kernels.shaped_gae(scores, torch.zeros(sum(lengths)), offsets(lengths), gamma=0.0, backend=gae_backend)
    assert found.advantages.nonzero().flatten().tolist() == last
    assert found.advantages[last].tolist() == scores[torch.tensor(lengths) > 0].tolist()


def test_masked_slots_never_leak(gae_backend: str) -> None:
    """CORRECTNESS 7: NaN and Inf in them change nothing, bit for bit."""
    mask = torch.rand(50) < 0.6
    clean = {name: torch.randn(50) for name in ("values", "rewards", "logprobs", "ref_logprobs")}
    dirty = {name: tensor.where(mask, torch.tensor([math.nan, math.inf]).repeat(25)) for name, tensor in clean.items()}
    scores, sequences = torch.randn(3), offsets([20, 0, 30])
    options = {"mask": mask, "kl_coef": 0.1, "kl_estimator": "k3", "backend": gae_backend}
    for a, b in zip(
        kernels.shaped_gae(scores, cu_seqlens=sequences, **clean, **options),
        kernels.shaped_gae(scores, cu_seqlens=sequences, **dirty, **options),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_infinite_kl_without_a_price(gae_backend: str) -> None:
    logprobs, ref = torch.tensor([0.0, -1.0]), torch.tensor([-math.inf, -1.0])
    found = kernels.shaped_gae(
        torch.ones(1), torch.zeros(2), offsets([2]), logprobs=logprobs, ref_logprobs=ref, backend=gae_backend
    )
    assert found.advantages.isfinite().all()


def test_variance_of_far_away_numbers(gae_backend: str) -> None:
    """CORRECTNESS 8: E[x²]−E[x]² in float32 would give 0 or less."""
    scores = 10_000 + torch.randn(4096)
    found = kernels.shaped_gae(scores, torch.zeros(4096), offsets([1] * 4096), backend=gae_backend)
    assert found.var.item() == pytest.approx(scores.double().var(unbiased=False).item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_and_strides(dtype: torch.dtype, gae_backend: str) -> None:
    lengths = [5, 0, 17, 1]
    values = torch.randn(2 * 23 + 1, dtype=torch.float64).to(dtype)[1::2]  # neither aligned nor contiguous
    scores = torch.randn(8, dtype=torch.float64).to(dtype)[::2]
    assert not values.is_contiguous()
    found = kernels.shaped_gae(scores, values, offsets(lengths), backend=gae_backend)
    assert found.advantages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    plain = {"gamma": 1.0, "lam": 0.95, "score_clip": None}
    want = loop({"scores": scores, "values": values, "cu_seqlens": offsets(lengths), **plain})["advantages"]
    torch.testing.assert_close(found.advantages.double(), torch.tensor(want).double(), rtol=1e-5, atol=1e-5)


def test_outputs_are_constants(gae_backend: str) -> None:
    values = torch.randn(4, requires_grad=True)
    found = kernels.shaped_gae(torch.ones(1), values, offsets([4]), backend=gae_backend)
    assert not any(tensor.requires_grad for tensor in found)


GOOD = {"scores": torch.zeros(2), "values": torch.zeros(5), "cu_seqlens": offsets([2, 3])}


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("scores", torch.zeros(3)),
        ("scores", torch.zeros(2, dtype=torch.int64)),
        ("values", torch.zeros(5, 1)),
        ("values", torch.zeros(5, device="meta")),
        ("cu_seqlens", torch.tensor([0, 2, 5])),
        ("cu_seqlens", torch.tensor([0, 6, 5], dtype=torch.int32)),
        ("cu_seqlens", torch.tensor([0, 2, 4], dtype=torch.int32)),
        ("cu_seqlens", torch.tensor([1, 2, 5], dtype=torch.int32)),
        ("cu_seqlens", torch.tensor([], dtype=torch.int32)),
        ("mask", torch.ones(5)),
        ("mask", torch.ones(4, dtype=torch.bool)),
        ("rewards", torch.zeros(4)),
        ("ref_logprobs", torch.zeros(5)),
        ("kl_coef", 0.1),
        ("kl_estimator", "k4"),
        ("score_clip", -1.0),
        ("bootstrap", torch.zeros(5)),
    ],
)
def test_bad_input_is_named(argument: str, bad: object, gae_backend: str) -> None:
    with pytest.raises(ValueError, match=argument if argument != "values" else "values|cu_seqlens"):
        kernels.shaped_gae(**{**GOOD, argument: bad}, backend=gae_backend)


def test_a_hundred_runs_are_identical_whatever_the_threads(gae_backend: str) -> None:
    lengths = torch.randint(0, 60, (200,)).tolist()
    scores, values, sequences = torch.randn(200), torch.randn(sum(lengths)), offsets(lengths)
    mask = torch.rand(len(values)) < 0.7
    first = kernels.shaped_gae(scores, values, sequences, mask=mask, backend=gae_backend)
    threads = torch.get_num_threads()
    try:
        for run in range(100 if gae_backend == "cpu" else 5):
            torch.set_num_threads(1 + run % 4)
            again = kernels.shaped_gae(scores, values, sequences, mask=mask, backend=gae_backend)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


SCRIPT = """
import sys, hashlib, torch
from rlhf_core import kernels
from rlhf_core.batch import offsets
torch.manual_seed(0)
lengths = torch.randint(0, 200, (50,)).tolist()
n = sum(lengths)
lp, ref, values = torch.randn(3, n)
found = kernels.shaped_gae(torch.randn(50), values, offsets(lengths), mask=torch.rand(n) < .7, logprobs=lp,
                           ref_logprobs=ref, kl_coef=.1, kl_estimator="k3", backend="cpu")
print(kernels.build_info()["isa"], hashlib.sha256(b"".join(t.numpy().tobytes() for t in found)).hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    if not kernels.build_info():
        pytest.skip("the extension is not built")
    seen = {}
    for isa in ("baseline", "avx2", None):
        environment = {**os.environ, **({"RLHF_CPU_ISA": isa} if isa else {})}
        command = [sys.executable, "-c", SCRIPT]
        name, digest = subprocess.check_output(command, env=environment, text=True).split()
        seen[name] = digest
    assert len(set(seen.values())) == 1
