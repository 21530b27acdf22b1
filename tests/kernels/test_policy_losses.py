"""ppo_loss and grpo_loss against a loop over Python floats that knows every option."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core import kernels
from rlhf_core.batch import offsets

KL = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}


def weights_of(case: dict, groups: list[list[int]]) -> dict[int, float]:
    how, total = case.get("aggregate") or "token", case.get("denominator")
    if case.get("kind") == "dr_grpo":
        how = "constant"
    groups = [group for group in groups if group]
    if how == "sequence":
        return {t: 1 / ((total or len(groups)) * len(group)) for group in groups for t in group}
    return {t: 1 / (total or sum(map(len, groups))) for group in groups for t in group}


def loop(case: dict) -> dict[str, float]:
    """The formulas, a token at a time."""
    x = {name: value.tolist() if torch.is_tensor(value) else value for name, value in case.items()}
    tokens, bounds = len(x["logprobs"]), x["cu_seqlens"]
    valid = [t for t in range(tokens) if "mask" not in x or x["mask"][t]]
    groups = [[t for t in valid if a <= t < b] for a, b in pairwise(bounds)]
    weight = weights_of(x, groups)
    low, high = 1 - x["clip_low"], 1 + x["clip_high"]
    parts = dict.fromkeys(("policy_loss", "value_loss", "entropy", "kl"), 0.0)
    means: dict[str, list[float]] = {name: [] for name in ("approx_kl", "clip_frac", "ratio_mean", "value_clip_frac")}
    for group in groups:
        logs = {t: x["logprobs"][t] - x["old_logprobs"][t] for t in group}
        if x.get("level") == "sequence":
            logs = dict.fromkeys(group, sum(logs.values()) / max(len(group), 1))
        for t in group:
            log_ratio = max(-20.0, min(20.0, logs[t]))
            ratio, a = math.exp(log_ratio), x["advantages"][t]
            if "whiten" in x:
                mean, var = map(float, x["whiten"])
                a = (a - mean) / math.sqrt(var + 1e-8) + (0 if x["shift_mean"] else mean)
            bound = max(low, min(high, ratio))
            if x.get("kind") == "cispo":
                objective, clipped = bound * a * x["logprobs"][t], bound != ratio
            else:
                objective, clipped = min(ratio * a, bound * a), bound * a < ratio * a
                if x.get("dual_clip") and a < 0:
                    objective = max(objective, x["dual_clip"] * a)
            parts["policy_loss"] -= weight[t] * objective * (x["importance"][t] if "importance" in x else 1)
            means["approx_kl"].append(ratio - 1 - log_ratio)
            means["clip_frac"].append(float(clipped))
            means["ratio_mean"].append(ratio)
            if "values" in x:
                v, old, r, clip = x["values"][t], x["old_values"][t], x["returns"][t], x["value_clip"]
                near = v if clip is None else max(old - clip, min(old + clip, v))
                parts["value_loss"] += weight[t] * 0.5 * max((v - r) ** 2, (near - r) ** 2)
                means["value_clip_frac"].append(float((near - r) ** 2 > (v - r) ** 2))
            if "entropy" in x:
                parts["entropy"] += weight[t] * x["entropy"][t]
            if "ref_logprobs" in x:
                parts["kl"] += weight[t] * KL[x["kl_estimator"]](x["logprobs"][t] - x["ref_logprobs"][t])
    loss = parts["policy_loss"] + x.get("value_coef", 0) * parts["value_loss"]
    loss += x.get("kl_coef", 0) * parts["kl"] - x.get("entropy_coef", 0) * parts["entropy"]
    found = {name: sum(terms) / len(terms) if terms else 0.0 for name, terms in means.items()}
    return {"loss": loss, "ratio_max": max(means["ratio_mean"], default=0.0), **parts, **found}


@st.composite
def cases(draw: st.DrawFn) -> dict:
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal() -> torch.Tensor:
        return torch.randn(sum(sizes), generator=random, dtype=torch.float64)

    case = {
        "logprobs": normal(),
        "advantages": normal(),
        "cu_seqlens": offsets(sizes),
        "clip_low": 0.1,
        "clip_high": 0.3,
    }
    case["old_logprobs"] = case["logprobs"] + 0.3 * normal()
    if draw(st.booleans()):
        case["mask"] = torch.rand(sum(sizes), generator=random) < 0.6
    if draw(st.booleans()):
        case |= {"whiten": (torch.tensor(0.3), 2.0), "shift_mean": draw(st.booleans())}
    if draw(st.booleans()):
        case |= {"entropy": normal(), "entropy_coef": 0.01}
    if draw(st.booleans()):
        estimator = draw(st.sampled_from(sorted(KL)))
        case |= {"ref_logprobs": case["logprobs"] + 0.5 * normal(), "kl_coef": 0.1, "kl_estimator": estimator}
    if draw(st.booleans()):
        case["importance"] = normal().exp()
    case["aggregate"] = draw(st.sampled_from(["token", "sequence", "constant"]))
    if case["aggregate"] == "constant" or draw(st.booleans()):
        case["denominator"] = 7.0
    return case


@st.composite
def ppo_cases(draw: st.DrawFn) -> dict:
    case = draw(cases())
    if draw(st.booleans()):
        case["dual_clip"] = 1.5
    if draw(st.booleans()):
        normal = torch.randn(3, len(case["logprobs"]), dtype=torch.float64)
        case |= dict(zip(("values", "old_values", "returns"), normal, strict=True))
        case |= {"value_coef": 0.7, "value_clip": draw(st.sampled_from([None, 0.2, 1.0]))}
    return case


@st.composite
def grpo_cases(draw: st.DrawFn) -> dict:
    case = draw(cases())
    case["level"] = draw(st.sampled_from(["token", "sequence"]))
    case["kind"] = draw(st.sampled_from(["grpo", "cispo", "dr_grpo"]))
    if case["kind"] == "dr_grpo":
        case |= {"aggregate": draw(st.sampled_from([None, "constant"])), "denominator": 9.0}
    elif case["kind"] == "grpo" and draw(st.booleans()):
        case["dual_clip"] = 1.5
    return case


def check(loss: torch.Tensor, metrics: dict[str, torch.Tensor], want: dict[str, float]) -> None:
    assert loss.item() == pytest.approx(want["loss"], rel=1e-6, abs=1e-9)
    for name, value in metrics.items():
        assert value.item() == pytest.approx(want[name], rel=1e-6, abs=1e-9), name
        assert not value.requires_grad


@given(case=ppo_cases())
def test_ppo_equals_the_loop(case: dict) -> None:
    loss, metrics = kernels.ppo_loss(**case)
    check(loss, metrics, loop(case))
    assert set(metrics) == set(loop(case)) - {"loss"}


@given(case=grpo_cases())
def test_grpo_equals_the_loop(case: dict) -> None:
    loss, metrics = kernels.grpo_loss(**case)
    check(loss, metrics, loop(case))
    assert set(metrics) == set(loop(case)) - {"loss", "value_loss", "value_clip_frac"}


def learnt(case: dict) -> list[str]:
    return [name for name in ("logprobs", "values", "entropy") if name in case]


@given(case=ppo_cases())
def test_ppo_gradient(case: dict) -> None:
    """Against differences of the loop, whose kinks random numbers do not hit."""
    names = learnt(case)
    given_ = {**case, **{name: case[name].clone().requires_grad_() for name in names}}
    if len(case["logprobs"]) == 0:
        return
    kernels.ppo_loss(**given_)[0].backward()
    for name in names:
        for t in range(min(3, len(case[name]))):
            step = torch.zeros_like(case[name])
            step[t] = 1e-6
            up, down = (loop({**case, name: case[name] + sign * step})["loss"] for sign in (1, -1))
            gradient = given_[name].grad
            got = 0.0 if gradient is None else gradient[t].item()
            assert got == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-6)


CLIP = 0.2
UP, DOWN = math.log(1.5), math.log(0.5)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "flows"),
    [(UP, 1, False), (UP, -1, True), (DOWN, 1, True), (DOWN, -1, False), (0, 1, True), (0, -1, True)],
)
@pytest.mark.parametrize("op", [kernels.ppo_loss, kernels.grpo_loss])
def test_clip_table(op, log_ratio: float, advantage: float, flows: bool) -> None:
    """CORRECTNESS 13: sign of the advantage × side of the ratio."""
    logprobs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    loss, metrics = op(logprobs, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64))
    loss.backward()
    assert logprobs.grad.item() == pytest.approx(-advantage * math.exp(log_ratio) if flows else 0.0)
    assert bool(metrics["clip_frac"]) == (not flows)


def test_clip_higher_and_dual_clip() -> None:
    """CORRECTNESS 14."""
    old = torch.zeros(2)
    logprobs, advantages = torch.tensor([math.log(1.25), math.log(5.0)]), torch.tensor([1.0, -1.0])
    losses = [
        kernels.ppo_loss(logprobs, old, advantages, denominator=1.0, **options)[0].item()
        for options in ({}, {"clip_high": 0.3}, {"dual_clip": 3.0})
    ]
    assert losses == pytest.approx([-1.2 + 5.0, -1.25 + 5.0, -1.2 + 3.0])


@pytest.mark.parametrize(("log_ratio", "gradient"), [(19.0, True), (21.0, False), (-21.0, False)])
def test_log_ratio_is_clamped(log_ratio: float, gradient: bool) -> None:
    logprobs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    advantage = -torch.sign(torch.tensor([log_ratio], dtype=torch.float64))  # the side that is not clipped
    loss, metrics = kernels.ppo_loss(logprobs, torch.zeros(1), advantage)
    loss.backward()
    assert (logprobs.grad.item() != 0) == gradient
    assert metrics["ratio_max"].item() <= math.exp(20) * (1 + 1e-12)


def test_value_loss_clips_around_the_old_values() -> None:
    values = torch.tensor([1.0], requires_grad=True)
    zeros = torch.zeros(1)
    options = {"values": values, "old_values": zeros, "value_clip": 0.2, "value_coef": 1.0}
    loss, metrics = kernels.ppo_loss(zeros, zeros, zeros, returns=torch.tensor([3.0]), **options)
    assert loss.item() == pytest.approx(0.5 * (0.2 - 3.0) ** 2)
    assert metrics["value_clip_frac"] == 1
    loss.backward()
    assert values.grad.item() == 0


@pytest.mark.parametrize("op", [kernels.ppo_loss, kernels.grpo_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_minibatch(op, dtype: torch.dtype) -> None:
    """CORRECTNESS 1: exactly."""
    logprobs = -torch.rand(64).to(dtype)
    loss, metrics = op(logprobs, logprobs.clone(), torch.randn(64))
    assert metrics["ratio_mean"] == metrics["ratio_max"] == 1
    assert metrics["approx_kl"] == metrics["clip_frac"] == 0
    assert loss.dtype == torch.float32


def test_gspo_reaches_every_token_alike() -> None:
    """CORRECTNESS 15: the mean over valid tokens; d loss/d logprob is the same for all of them."""
    logprobs = torch.randn(5, dtype=torch.float64).mul(0.01).requires_grad_()
    mask = torch.tensor([True, True, False, True, True])
    options = {"level": "sequence", "aggregate": "sequence", "cu_seqlens": offsets([5])}
    loss, metrics = kernels.grpo_loss(logprobs, torch.zeros(5), torch.ones(5), mask=mask, **options)
    loss.backward()
    ratio = logprobs.detach()[mask].mean().exp()
    torch.testing.assert_close(logprobs.grad, -mask.double() * ratio / 4)
    torch.testing.assert_close(metrics["ratio_max"], ratio)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    logprobs = torch.tensor([UP], requires_grad=True)
    loss, _ = kernels.grpo_loss(logprobs, torch.zeros(1), torch.ones(1), kind="cispo")
    loss.backward()
    assert logprobs.grad.item() == pytest.approx(-1.2)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_microbatches_add_up(aggregate: str) -> None:
    """CORRECTNESS 12: loss and gradient of the whole equal the sum over any split, empty sequences or not."""
    sizes = [4, 0, 1, 7, 3, 0, 5]
    tokens = sum(sizes)
    case = dict(zip(("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns"),
                    torch.randn(6, tokens, dtype=torch.float64), strict=True))  # fmt: skip
    mask = torch.rand(tokens) < 0.7
    mask[5:12] = False  # a sequence without a valid token
    counts = [int(part.sum()) for part in mask.split(sizes)]
    total = {"token": sum(counts), "sequence": sum(count > 0 for count in counts), "constant": 100}[aggregate]

    def loss_of(first: int, last: int, denominator: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        rows = slice(sum(sizes[:first]), sum(sizes[:last]))
        part = {name: tensor[rows].clone().requires_grad_() for name, tensor in case.items()}
        options = {"cu_seqlens": offsets(sizes[first:last]), "aggregate": aggregate, "denominator": denominator}
        loss, _ = kernels.ppo_loss(**part, mask=mask[rows], **options)
        return loss.detach(), torch.cat(torch.autograd.grad(loss, [part["logprobs"], part["values"]]))

    whole, gradient = loss_of(0, 7, total if aggregate == "constant" else None)
    for cuts in ([0, 3, 7], [0, 1, 2, 3, 4, 5, 6, 7]):
        parts = [loss_of(a, b, float(total)) for a, b in pairwise(cuts)]
        torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
        halves = [g.chunk(2) for _, g in parts]
        torch.testing.assert_close(torch.cat([g[0] for g in halves] + [g[1] for g in halves]), gradient)


@pytest.mark.parametrize("op", [kernels.ppo_loss, kernels.grpo_loss])
def test_masked_slots_never_leak(op) -> None:
    mask = torch.rand(20) < 0.5
    names = ("logprobs", "old_logprobs", "advantages", "ref_logprobs", "entropy", "importance")
    clean = dict(zip(names, torch.randn(6, 20), strict=True))
    results = []
    for dirt in (0.0, math.nan, math.inf):
        case = {name: tensor.where(mask, torch.tensor(dirt)) for name, tensor in clean.items()}
        case["logprobs"].requires_grad_()
        loss, metrics = op(**case, mask=mask, kl_coef=0.1, entropy_coef=0.1)
        (gradient,) = torch.autograd.grad(loss, case["logprobs"])
        results.append(torch.stack([loss.detach(), *metrics.values(), *gradient]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("op", [kernels.ppo_loss, kernels.grpo_loss])
@pytest.mark.parametrize("tokens", [0, 3])
def test_nothing_valid_is_zero(op, tokens: int) -> None:
    logprobs = torch.randn(tokens, requires_grad=True)
    loss, metrics = op(logprobs, torch.zeros(tokens), torch.ones(tokens), mask=torch.zeros(tokens, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not logprobs.grad.any()
    assert all(value == 0 for value in metrics.values())


def test_whitening_keeps_the_mean_when_asked() -> None:
    """CORRECTNESS 8."""
    advantages = torch.randn(1000, dtype=torch.float64) * 3 + 5
    mean, var = advantages.mean(), advantages.var(unbiased=False)
    for shift, want in ((True, 0.0), (False, mean.item())):
        found = kernels.whitened(advantages, mean, var, shift_mean=shift)
        assert found.mean().item() == pytest.approx(want, abs=1e-12)
        assert found.std(unbiased=False).item() == pytest.approx(1.0)


N = torch.zeros(4)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("old_logprobs", {"old_logprobs": torch.zeros(3)}),
        ("advantages", {"advantages": torch.zeros(4, dtype=torch.int32)}),
        ("mask", {"mask": torch.ones(4)}),
        ("entropy_coef", {"entropy_coef": 0.1}),
        ("kl_coef", {"kl_coef": 0.1}),
        ("kl_estimator", {"kl_estimator": "k0"}),
        ("aggregate", {"aggregate": "tokens"}),
        ("cu_seqlens", {"aggregate": "sequence"}),
        ("cu_seqlens", {"aggregate": "sequence", "cu_seqlens": torch.tensor([0, 3], dtype=torch.int32)}),
        ("denominator", {"aggregate": "constant"}),
        ("denominator", {"denominator": 0}),
        ("denominator", {"denominator": torch.ones(2)}),
        ("whiten", {"whiten": (torch.zeros(4), torch.ones(4))}),
        ("clip_low", {"clip_low": 1.5}),
        ("dual_clip", {"dual_clip": 0.9}),
        ("returns", {"values": N}),
        ("old_values", {"values": N, "returns": N}),
        ("level", {"level": "word"}),
        ("kind", {"kind": "ppo"}),
        ("cu_seqlens", {"level": "sequence"}),
        ("dual_clip", {"kind": "cispo", "dual_clip": 3.0}),
        ("aggregate", {"kind": "dr_grpo", "aggregate": "token", "denominator": 5}),
        ("denominator", {"kind": "dr_grpo"}),
    ],
)
def test_bad_input_is_named(argument: str, options: dict) -> None:
    op = kernels.grpo_loss if {"kind", "level"} & set(options) else kernels.ppo_loss
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        op(**{"logprobs": N, "old_logprobs": N, "advantages": N, **options})
