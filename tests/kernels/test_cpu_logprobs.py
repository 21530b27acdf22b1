"""token_logprobs and logprobs_from_logits in C++ against their definitions in float64.

Vocabularies are around blocks of 64 words, parts of 512 and rows of 2048 logits; the backward pass
takes 1024 rows at once.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rlhf_core import kernels
from rlhf_core.bench.footprint import footprint
from rlhf_core.kernels.native.products import widens

from .compiled import DTYPES, Found, head_case, near, needs_cpu, outcome, poisoned, same, stridden, threads, to

pytestmark = needs_cpu("token_logprobs")

OPS = ("token_logprobs", "logprobs_from_logits")
MULTIPLIED = [torch.float32, torch.float64, *([] if widens(torch.bfloat16) else [torch.bfloat16])]


def run(op: str, case: dict[str, Any], backend: str = "cpu") -> Found:
    with poisoned(backend == "cpu"):
        return outcome(op, case, backend)


def check(op: str, case: dict[str, Any], dtype: torch.dtype = torch.float32) -> Found:
    """The log-probs themselves are kept in float32 whatever the inputs: near to float32's error."""
    case = to(case, dtype)
    found, single, exact = run(op, case), run(op, case, "eager"), run(op, to(case, torch.float64), "eager")
    for gradients in (False, True):
        sides = [{n: x for n, x in side.items() if n.startswith("d_") == gradients} for side in (found, single, exact)]
        near(*sides, dtype if gradients or dtype == torch.float64 else torch.float32)
    return found


def from_logits(case: dict[str, Any]) -> dict[str, Any]:
    """The same rows by their logits; NaN where there is no label."""
    logits = case["hidden"].float() @ case["weight"].float().T
    return {"logits": logits} | {name: case[name] for name in ("targets", "temperature", "entropy") if name in case}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_every_option(bias: bool, entropy: bool, temperature: float, dtype: torch.dtype) -> None:
    case = head_case(37, 33, 517, bias=bias) | {"entropy": entropy, "temperature": temperature}
    found = check("token_logprobs", case, dtype)
    rows = check("logprobs_from_logits", from_logits(case), dtype)
    assert not rows["d_logits"][1::3].any() and not found["d_hidden"][1::3].any()
    assert not rows["logprobs"][1::3].any() and not found["logprobs"][1::3].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 2, 50, 517, 1000, 2049])
@pytest.mark.parametrize("size", [33, 64, 96, 700])
def test_sizes(vocabulary: int, size: int, dtype: torch.dtype) -> None:
    case = head_case(19, size, vocabulary) | {"entropy": True}
    check("token_logprobs", case, dtype)
    check("logprobs_from_logits", from_logits(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 127, 129, 1650])
def test_numbers_of_rows(rows: int, dtype: torch.dtype) -> None:
    """A third of them without a label: 1100 with one, of which the backward pass takes 1024 at once."""
    case = head_case(rows, 64, 700) | {"entropy": True}
    check("token_logprobs", case, dtype)
    check("logprobs_from_logits", from_logits(case), dtype)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("through", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_output_has_a_gradient(op: str, through: int, dtype: torch.dtype) -> None:
    case = to(head_case(37, 64, 517, bias=False), dtype)
    case = case if op == "token_logprobs" else to(from_logits(case), dtype)
    names, found = [name for name in ("hidden", "weight", "logits") if name in case], []
    for backend, wide in (("cpu", dtype), ("eager", dtype), ("eager", torch.float64)):
        given = to(case, wide)
        leaves = {name: given[name].requires_grad_() for name in names}
        output = getattr(kernels, op)(**given | leaves, entropy=True, backend=backend)[through]
        gradients = torch.autograd.grad(output, list(leaves.values()), torch.linspace(-1, 1, 37, dtype=output.dtype))
        found.append({f"d_{name}": x for name, x in zip(names, gradients, strict=True)})
    near(*found, dtype)


@pytest.mark.parametrize("op", OPS)
def test_rows_that_nobody_asks_for_get_no_gradient(op: str) -> None:
    """Where what comes from above is 0 there is 0, and NaN of such a row reaches no other."""
    case = head_case(40, 64, 517, bias=False)
    case["targets"] = case["targets"].clamp(min=0)
    case["hidden"] = case["hidden"].nan_to_num()
    case = case if op == "token_logprobs" else from_logits(case)
    first = next(iter(case))
    upstream = torch.randn(40)
    upstream[::4] = 0
    gradients = []
    for dirt in (0.0, math.nan):
        leaf = case[first].clone()
        leaf[::4] += dirt
        leaf.requires_grad_()
        output = getattr(kernels, op)(**case | {first: leaf}, backend="cpu")
        gradients.append(torch.autograd.grad(output, leaf, upstream)[0])
    assert torch.equal(*gradients) and not gradients[0][::4].any() and gradients[0][1::4].any(1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_impossible_tokens(dtype: torch.dtype) -> None:
    """Of probability 0: first, last, in parts of their own, all but one."""
    logits = torch.randn(6, 5000)
    logits[0, :4096] = logits[1, 3:] = logits[2, ::2] = logits[3, 4999] = logits[4, 1:] = -math.inf
    targets = torch.tensor([4500, 0, 1, 4, 0, 9])
    found = check("logprobs_from_logits", {"logits": logits, "targets": targets, "entropy": True}, dtype)
    assert found["d_logits"].isfinite().all() and found["logprobs"][4] == 0 and found["entropy"][4].abs() < 1e-30
    case = head_case(6, 64, 5000) | {"entropy": True, "targets": targets, "hidden": torch.randn(6, 64)}
    for hidden_words in (slice(10, 4400), slice(4600, None), slice(5, 5000, 7)):
        case["bias"] = torch.randn(5000)
        case["bias"][hidden_words] = -math.inf
        case["targets"] = case["bias"].isfinite().nonzero()[:6, 0]
        found = check("token_logprobs", case, dtype)
        for name in ("d_bias", "d_weight"):
            assert found[name][hidden_words].double().abs().max() < 1e-30


@pytest.mark.parametrize("op", OPS)
def test_an_impossible_target(op: str) -> None:
    case = head_case(3, 64, 700) | {"hidden": torch.randn(3, 64), "targets": torch.tensor([5, 650, 1])}
    case["bias"][650] = -math.inf
    if op == "logprobs_from_logits":
        case = {"logits": case["hidden"] @ case["weight"].T + case["bias"], "targets": case["targets"]}
    found = getattr(kernels, op)(**case, backend="cpu")
    assert found[1] == -math.inf and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_rows_without_a_distribution_are_nan_and_alone(value: float) -> None:
    """A +inf or a NaN among the logits, or nothing but −inf."""
    logits = torch.randn(3, 5000)
    logits[1] = value if value < 0 else logits[1]
    logits[1, 4500] = value
    case = {"logits": logits, "targets": torch.tensor([4, 4500, 2]), "entropy": True}
    for place in (0, 4500):
        case["targets"][1] = place
        wanted, found = (run("logprobs_from_logits", case, backend) for backend in ("eager", "cpu"))
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], equal_nan=True, rtol=1e-5, atol=1e-6)
            assert tensor[1].isnan().all() and tensor[[0, 2]].isfinite().all()
    hidden = torch.randn(20, 64)
    hidden[3, 5] = value
    pair = kernels.token_logprobs(hidden, torch.randn(700, 64), torch.arange(20), entropy=True, backend="cpu")
    for tensor in pair:
        assert tensor[3].isnan() and tensor[[0, 1, 2, *range(4, 20)]].isfinite().all()
    bias = torch.full((700,), -math.inf if value < 0 else 0.0)
    bias[650] = value
    for tensor in kernels.token_logprobs(
        torch.randn(20, 64), torch.randn(700, 64), torch.arange(20), bias=bias, entropy=True, backend="cpu"
    ):
        assert tensor.isnan().all()


def test_logits_far_from_zero_keep_their_differences() -> None:
    logits = torch.tensor([[1e4, 1e4 - 1, 1e4 - 2], [-1e9, -2e9, 0.0]])
    check("logprobs_from_logits", {"logits": logits, "targets": torch.tensor([1, 2]), "entropy": True})


def test_gradcheck() -> None:
    case = to(head_case(5, 3, 7) | {"hidden": torch.randn(5, 3)}, torch.float64)
    targets, names = case.pop("targets"), ("hidden", "weight", "bias")

    def head(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return kernels.token_logprobs(hidden, weight, targets, bias=bias, temperature=0.8, entropy=True, backend="cpu")

    assert torch.autograd.gradcheck(head, [case[name].requires_grad_() for name in names])

    def rows(logits: Tensor) -> tuple[Tensor, ...]:
        return kernels.logprobs_from_logits(logits, targets, temperature=0.8, entropy=True, backend="cpu")

    assert torch.autograd.gradcheck(rows, [torch.randn(5, 7, dtype=torch.float64, requires_grad=True)])


@pytest.mark.parametrize("way", ["last", "rows", "shifted", "swapped"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [33, 64])
def test_strides(way: str, dtype: torch.dtype, size: int) -> None:
    """Not a bit changes."""
    case = to(head_case(37, size, 517) | {"entropy": True}, dtype)
    odd = {name: stridden(case[name])[way] for name in ("hidden", "weight")}
    odd |= {name: torch.stack([case[name]] * 2, 1)[:, 0] for name in ("bias", "targets")}
    assert not any(tensor.is_contiguous() for tensor in odd.values())
    same(run("token_logprobs", case | odd), run("token_logprobs", case))
    rows = to(from_logits(case), dtype)
    spread = {"logits": stridden(rows["logits"])[way], "targets": odd["targets"]}
    same(run("logprobs_from_logits", rows | spread), run("logprobs_from_logits", rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_share_memory(dtype: torch.dtype) -> None:
    """One row of hidden states or weights for all, and rows that overlap."""
    case = to(head_case(37, 64, 517) | {"hidden": torch.randn(37, 64), "entropy": True}, dtype)
    overlapping = torch.randn(517 * 16 + 64).to(dtype).as_strided((517, 64), (16, 1))
    for name, odd in (
        ("hidden", overlapping[:37]),
        ("weight", overlapping),
        ("weight", overlapping[:1].expand(517, 64)),
    ):
        outcomes = [run("token_logprobs", case | {name: x}) for x in (odd, odd.contiguous())]
        same(*outcomes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, 700])
def test_a_row_does_not_depend_on_the_batch(dtype: torch.dtype, size: int) -> None:
    """Nor on the threads: its outputs and its own gradient are the same bits."""
    case = to(head_case(300, size, 1000) | {"entropy": True}, dtype)
    case["targets"], case["hidden"] = case["targets"].clamp(min=0), case["hidden"].nan_to_num()
    rows = to(from_logits(case), dtype)

    def gradients(op: str, given: dict[str, Any], picked: Tensor) -> list[Tensor]:
        name = "hidden" if op == "token_logprobs" else "logits"
        leaf = given[name][picked].requires_grad_()
        pair = getattr(kernels, op)(**given | {name: leaf, "targets": given["targets"][picked]}, backend="cpu")
        weights = torch.linspace(-1, 1, 300, dtype=pair[0].dtype)[picked]
        return [*pair, *torch.autograd.grad(pair, leaf, (weights, weights.flip(0).clone().fill_(0.3)))]

    for op, given in (("token_logprobs", case), ("logprobs_from_logits", rows)):
        whole = gradients(op, given, torch.arange(300))
        for picked in (torch.randperm(300), torch.tensor([7]), torch.arange(120, 290), torch.tensor([299, 3, 150])):
            for count in (1, 2):
                with threads(count):
                    part = gradients(op, given, picked)
                assert all(torch.equal(a[picked], b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_are_identical_whatever_the_threads(dtype: torch.dtype) -> None:
    case = to(head_case(150, 96, 1000) | {"entropy": True}, dtype)
    for op, given in (("token_logprobs", case), ("logprobs_from_logits", to(from_logits(case), dtype))):
        first = run(op, given)
        for number in range(50):
            with threads(1 + number % 2):
                same(run(op, given), first)


def test_peak_memory_is_a_fraction_of_the_definitions() -> None:
    """Deterministic: bytes that the allocator gave."""
    case = head_case(1024, 64, 32768, bias=False)
    case["hidden"] = case["hidden"].nan_to_num()
    peaks = []
    for backend in ("cpu", "eager"):
        leaves = {name: case[name].requires_grad_() for name in ("hidden", "weight")}

        def full(backend: str = backend, leaves: dict[str, Tensor] = leaves) -> tuple[Tensor, ...]:
            found = kernels.token_logprobs(**case | leaves, backend=backend)
            return torch.autograd.grad(found.sum(), list(leaves.values()))

        full()
        prepared = SimpleNamespace(full=full, case=SimpleNamespace(packed={}))
        peaks.append(footprint(prepared, "full", torch.device("cpu")).peak)
    assert peaks[1] > 1024 * 32768 * 4 and peaks[0] > 32768 * 64 * 4  # what is returned, at the least
    assert peaks[0] < 0.15 * peaks[1]


@pytest.mark.parametrize("dtype", MULTIPLIED, ids=str)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("size", [33, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(bias: bool, size: int, entropy: bool, dtype: torch.dtype) -> None:
    """Schema, shapes for tracing, autograd."""
    case = to(head_case(5, size, 70), dtype)
    hidden, weight, added = (case[name].nan_to_num().requires_grad_() for name in ("hidden", "weight", "bias"))
    added = added if bias else None
    torch.library.opcheck(torch.ops.rlhf.token_logprobs.default, (hidden, weight, case["targets"], added, 0.7, entropy))
    fixed = [x if x is None else x.detach() for x in (hidden, weight, case["targets"], added)]
    logprobs, entropies, lse = torch.ops.rlhf.token_logprobs(*fixed, 0.7, entropy)
    slopes = (torch.ones_like(logprobs), torch.ones_like(entropies) if entropy else None)
    torch.library.opcheck(torch.ops.rlhf.token_logprobs_backward.default, (*slopes, *fixed, lse, entropies, 0.7))


@pytest.mark.parametrize("dtype", MULTIPLIED, ids=str)
@pytest.mark.parametrize("entropy", [False, True])
def test_opcheck_of_logits(entropy: bool, dtype: torch.dtype) -> None:
    logits, targets = torch.randn(5, 70, dtype=dtype, requires_grad=True), torch.tensor([3, -100, 69, 0, 1])
    torch.library.opcheck(torch.ops.rlhf.logprobs_from_logits.default, (logits, targets, 0.7, entropy))
    fixed = (logits.detach(), targets)
    logprobs, entropies, lse = torch.ops.rlhf.logprobs_from_logits(*fixed, 0.7, entropy)
    slopes = (torch.ones_like(logprobs), torch.ones_like(entropies) if entropy else None)
    backward = (*slopes, *fixed, lse, entropies, 0.7)
    torch.library.opcheck(torch.ops.rlhf.logprobs_from_logits_backward.default, backward)


@pytest.mark.parametrize("op", OPS)
def test_compiles_whole_with_two_sizes(op: str) -> None:
    """One graph, forward and backward, whatever the size."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def call(arguments: dict[str, Tensor]) -> Tensor:
        logprobs, entropies = getattr(kernels, op)(**arguments, entropy=True, backend="cpu")
        return (logprobs + 2 * entropies).sum()

    compiled, graphs = torch.compile(call, fullgraph=True, dynamic=True, backend=counter), []
    for rows in (5, 9):
        case = head_case(rows, 33, 70, bias=False)
        case = case if op == "token_logprobs" else from_logits(case)
        leaf = case["weight" if op == "token_logprobs" else "logits"].requires_grad_()
        found, wanted = compiled(case), call(case)
        assert torch.equal(found, wanted)
        assert torch.equal(*(torch.autograd.grad(x, leaf)[0] for x in (found, wanted)))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]  # the first may take two attempts: dynamo makes a constant of the temperature


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("hidden", torch.zeros(2, 3, 1)),
        ("weight", torch.zeros(5, 4)),
        ("weight", torch.zeros(5, 3, dtype=torch.bfloat16)),
        ("bias", torch.zeros(4)),
        ("targets", torch.tensor([0, 5])),
        ("targets", torch.tensor([0, -1])),
        ("targets", torch.tensor([0, 1], dtype=torch.int32)),
        ("temperature", 0.0),
    ],
)
def test_bad_input_is_named(argument: str, bad: Any) -> None:
    """Also by the ops themselves."""
    good = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "targets": torch.tensor([0, 4]), "bias": None}
    good |= {"temperature": 1.0, "entropy": False}
    for op in (torch.ops.rlhf.token_logprobs, torch.ops.rlhf.head_rows):
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            op(**good | {argument: bad})
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.token_logprobs(**good | {argument: bad}, backend="cpu")
