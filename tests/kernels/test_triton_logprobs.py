"""Triton's log-probs and the loss from a linear head, interpreted (``TRITON_INTERPRET=1``), against the definitions."""

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.batch import offsets

from .cases import compare

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from rlhf_core.kernels.triton import head, logprobs, token_logprobs

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, where a GPU gives infinity
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # triton 3.6 with numpy 2.3
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCKS = (1, 2, 13, 4096, 4097, 9001)  # vocabularies around the kernel's blocks, which are of 4096 or 8192
Arguments = dict[str, Any]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(rows: int, size: int, vocabulary: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> Arguments:
    """A head; every third row has no label, and NaN in it."""
    case: Arguments = {"hidden": torch.randn(rows, size), "weight": torch.randn(vocabulary, size)}
    if bias:
        case["bias"] = torch.randn(vocabulary)
    case = {name: tensor.to(dtype) for name, tensor in case.items()}
    case["targets"] = torch.randint(0, vocabulary, (rows,))
    case["targets"][1::3] = -100
    case["hidden"][1::3] = math.nan
    return case


def outcome(op: str, case: Arguments, backend: str, wide: bool = False, upstream: float = 1.0) -> dict[str, Tensor]:
    """All that an op gives, and the gradient of whatever has one; with other weights for every output of a row."""
    names = [name for name in ("hidden", "weight", "bias", "logits", "values") if case.get(name) is not None]

    def cast(x: Any) -> Any:
        return x.double() if wide and torch.is_tensor(x) and x.is_floating_point() and x.dim() else x

    case = {name: cast(x) for name, x in case.items()}
    learnt = {name: case[name].detach().requires_grad_() for name in names}
    found = getattr(kernels, op)(**case | learnt, backend=backend)
    if op == "linear_policy_loss":
        total, outputs = found[0] * upstream, {"loss": found[0]} | found[1]
    else:
        pair = found if isinstance(found, tuple) else (found,)
        ramps = (torch.linspace(1, 2, len(x), dtype=x.dtype) * (-1) ** n for n, x in enumerate(pair))
        total = sum((x * ramp).sum() for x, ramp in zip(pair, ramps, strict=True)) * upstream
        outputs = dict(zip(("logprobs", "entropy"), pair, strict=False))
    gradients = torch.autograd.grad(total, list(learnt.values()))
    return {n: x.detach() for n, x in outputs.items()} | {f"d_{n}": x for n, x in zip(names, gradients, strict=True)}


def check(op: str, case: Arguments, upstream: float = 1.0) -> dict[str, Tensor]:
    torch.use_deterministic_algorithms(False)
    single, exact = (outcome(op, case, "eager", wide, upstream) for wide in (False, True))
    torch.use_deterministic_algorithms(True)
    found = outcome(op, case, "triton", upstream=upstream)
    # The logits' gradients go through a product in the inputs' dtype, a rounding that the definition does not have.
    rounding = torch.finfo(case["logits" if op == "logprobs_from_logits" else "hidden"].dtype).eps / 2
    for gradients, small in ((False, 2e-6), (True, max(2e-6, rounding))):
        some = [{n: x for n, x in side.items() if n.startswith("d_") == gradients} for side in (found, single, exact)]
        compare(*some, small=small)
    assert all(found[name].dtype == single[name].dtype for name in found)
    return found


@pytest.mark.parametrize("vocabulary", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_vocabulary_and_dtype(vocabulary: int, dtype: torch.dtype) -> None:
    case = problem(5, 8, vocabulary, dtype) | {"entropy": True, "temperature": 0.7}
    found = check("token_logprobs", case)
    logits = 3 * torch.randn(5, vocabulary)
    logits[1::3] = math.nan
    rest = {name: case[name] for name in ("targets", "entropy", "temperature")}
    rows = check("logprobs_from_logits", {"logits": logits.to(dtype), **rest})
    assert not rows["d_logits"][1::3].any() and not found["d_hidden"][1::3].any()
    assert rows["logprobs"][1] == rows["entropy"][1] == found["logprobs"][1] == found["entropy"][1] == 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_every_option(bias: bool, entropy: bool, temperature: float) -> None:
    case = problem(7, 6, 45, bias=bias) | {"entropy": entropy, "temperature": temperature}
    check("token_logprobs", case, upstream=-1.5)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 13])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_add_up(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 4)
    check("token_logprobs", problem(rows, 6, 45, dtype) | {"entropy": True})


def test_chunks_are_large_and_alike() -> None:
    for tokens in (0, 1, 2047, 2048, 4095, 4097, 6143, 100_000):
        some = head.Head(torch.empty(tokens, 1), torch.empty(1, 1), None, torch.empty(tokens, dtype=torch.int64), 1.0)
        chunks = list(some.chunks())
        sizes = [rows.stop - rows.start for rows in chunks]
        assert sum(sizes) == tokens
        assert [rows.start for rows in chunks] == [sum(sizes[:place]) for place in range(len(sizes))]
        assert max(sizes, default=0) < 4096
        assert all(size > 2000 for size in sizes) or tokens < 2048


def test_tensors_that_are_not_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 3)
    case = problem(8, 6, 45)
    spread = {
        "hidden": case["hidden"].repeat_interleave(2, 1)[:, ::2],
        "weight": case["weight"].t().contiguous().t(),
        "bias": case["bias"].repeat_interleave(2)[::2],
        "targets": case["targets"].repeat_interleave(3)[::3],
    }
    for name, tensor in spread.items():
        assert tensor.equal(case[name]) or name == "hidden"
        assert not tensor.is_contiguous()
    check("token_logprobs", spread | {"entropy": True})
    wide = torch.randn(45, 40)
    for logits in (wide.t()[:8], wide[:8, 3:], wide[:16:2, ::3], torch.randn(1, 40).expand(8, 40)):
        check("logprobs_from_logits", {"logits": logits, "targets": spread["targets"] % 13, "entropy": True})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_impossible_tokens(dtype: torch.dtype) -> None:
    """Of probability 0: in a block of their own, before and after the others, as the target."""
    logits = torch.randn(5, 8300)
    logits[0, :8192] = logits[1, 3:] = logits[2, ::2] = -math.inf
    logits[3, 8299] = logits[4, 7] = -math.inf
    targets = torch.tensor([8200, 0, 1, 4, 7])
    found = check("logprobs_from_logits", {"logits": logits.to(dtype)[:4], "targets": targets[:4], "entropy": True})
    assert found["d_logits"].isfinite().all()
    row = logits[4:].to(dtype).requires_grad_()
    found_there = kernels.logprobs_from_logits(row, targets[4:], backend="triton")
    assert found_there.item() == -math.inf
    assert torch.autograd.grad(found_there.sum(), row)[0].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_rows_without_a_distribution_are_nan_and_alone(value: float) -> None:
    logits = torch.randn(3, 5000)
    logits[1] = value if value < 0 else logits[1]
    logits[1, 4500] = value
    case = {"logits": logits, "targets": torch.tensor([4, 4500, 2]), "entropy": True}
    torch.use_deterministic_algorithms(False)
    wanted, found = (outcome("logprobs_from_logits", case, backend) for backend in ("eager", "triton"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, equal_nan=True)
        assert found[name][1].isnan().all() and found[name][[0, 2]].isfinite().all()


def test_logits_far_from_zero_keep_their_differences() -> None:
    logits = torch.tensor([[1e4, 1e4 - 1, 1e4 - 2], [-1e9, -2e9, 0.0]])
    check("logprobs_from_logits", {"logits": logits, "targets": torch.tensor([1, 2]), "entropy": True})


def test_a_row_does_not_depend_on_the_batch() -> None:
    logits, targets = torch.randn(6, 5000), torch.randint(0, 5000, (6,))
    order = torch.tensor([3, 0, 5])
    some = (kernels.logprobs_from_logits(logits[o], targets[o], backend="triton") for o in (slice(None), order))
    whole, part = some
    assert torch.equal(whole[order], part)


def test_only_what_is_asked_for_is_computed() -> None:
    """A frozen head, as under LoRA: no product for its gradient."""
    case = problem(6, 5, 9)
    hidden = case["hidden"].nan_to_num().requires_grad_()
    found = kernels.token_logprobs(hidden, case["weight"], case["targets"], bias=case["bias"], backend="triton")
    wanted = kernels.token_logprobs(hidden, case["weight"], case["targets"], bias=case["bias"], backend="eager")
    gradients = [torch.autograd.grad(x.sum(), hidden)[0] for x in (found, wanted)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert not kernels.token_logprobs(hidden, case["weight"], case["targets"], backend="triton").requires_grad


ROWS = 13
OPTION_SETS: dict[str, Arguments] = {
    "plain": {},
    "entropy": {"entropy_coef": 0.02, "temperature": 0.8},
    "entropy for show": {"entropy": True, "clip_high": 0.3, "dual_clip": 1.5},
    "values": {"value_clip": 0.2, "value_coef": 0.7, "whiten": (0.3, 2.0)},
    "values without a clip": {"value_clip": None, "whiten": tuple(torch.tensor([0.3, 2.0])), "shift_mean": False},
    "kl": {"kl_coef": 0.1, "kl_estimator": "k3", "importance": True, "denominator": 7.0},
    "constant": {"aggregate": "constant", "denominator": torch.tensor(9.0), "entropy_coef": 0.02},
    "sequence": {"aggregate": "sequence", "entropy_coef": 0.02, "value_clip": 0.2, "kl_coef": 0.1},
    "sequence, global": {"aggregate": "sequence", "denominator": 3.0},
    "nothing counts": {"mask": False, "entropy_coef": 0.1},
}  # fmt: skip


def loss_case(choice: Arguments, dtype: torch.dtype = torch.float32, rows: int = ROWS, bias: bool = True) -> Arguments:
    case = problem(rows, 6, 45, dtype, bias) | choice
    with torch.no_grad():
        clean = {name: case[name] for name in ("hidden", "weight", "targets")} | {"bias": case.get("bias")}
        near = kernels.token_logprobs(**clean, temperature=choice.get("temperature", 1.0), backend="eager")
    case["old_logprobs"], case["advantages"] = near + 0.3 * torch.randn(rows), torch.randn(rows)
    case["mask"] = torch.rand(rows) < (0.7 if choice.get("mask", True) else 0.0)
    if "value_clip" in choice:
        case |= {name: torch.randn(rows) for name in ("values", "old_values", "returns")}
    if "kl_coef" in choice:
        case["ref_logprobs"] = near + 0.3 * torch.randn(rows)
    if "importance" in choice:
        case["importance"] = torch.rand(rows) + 0.5
    if choice.get("aggregate") == "sequence":
        case["cu_seqlens"] = offsets([rows // 2, 0, rows - rows // 2])
    return case


@pytest.mark.parametrize("name", OPTION_SETS)
def test_linear_policy_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 4)
    check("linear_policy_loss", loss_case(OPTION_SETS[name]), upstream=-1.5)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["entropy", "sequence"])
def test_linear_policy_loss_of_half_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a loss divided by a million, and its gradient scaled up again: in float16 it would be 0 in between."""
    monkeypatch.setattr(head, "CHUNK", 4)
    check("linear_policy_loss", loss_case(OPTION_SETS[name], dtype, bias=False))
    check("linear_policy_loss", loss_case({"denominator": 1e6}, dtype, bias=False), upstream=1e6)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", ["values", "sequence"])
def test_linear_policy_loss_of_next_to_nothing(name: str, rows: int) -> None:
    check("linear_policy_loss", loss_case(OPTION_SETS[name], rows=rows))


def test_what_is_masked_is_not_read() -> None:
    case = loss_case({"entropy_coef": 0.1})
    dirty = case["hidden"].clone()
    dirty[~case["mask"]] = math.nan
    found = [outcome("linear_policy_loss", case | {"hidden": x}, "triton") for x in (case["hidden"], dirty)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not found[0]["d_hidden"][~case["mask"]].any()


@pytest.mark.parametrize(("name", "products"), [("entropy", 3), ("sequence", 4)])
def test_how_many_products_it_takes(name: str, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for function in ("_product", "_add_product"):
        own = getattr(head, function)
        monkeypatch.setattr(head, function, lambda *args, own=own: calls.append(own) or own(*args))
    outcome("linear_policy_loss", loss_case(OPTION_SETS[name]), "triton")
    assert len(calls) == products
    calls.clear()
    with torch.no_grad():
        kernels.linear_policy_loss(**loss_case(OPTION_SETS[name]), backend="triton")
    assert len(calls) == 1


def test_a_graph_is_gone_through_twice() -> None:
    case = loss_case({})
    weight = case["weight"].requires_grad_()
    loss, _ = kernels.linear_policy_loss(**case, backend="triton")
    (first,) = torch.autograd.grad(loss, weight, torch.tensor(3.0), retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(first, 3 * second)


def test_float64_is_for_the_definition() -> None:
    case = loss_case({})
    case["advantages"] = case["advantages"].double()
    with pytest.raises(kernels.BackendError, match="float64"):
        kernels.linear_policy_loss(**case, backend="triton")


def test_a_bad_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"^clip_low: expected"):
        kernels.linear_policy_loss(**loss_case({"clip_low": 2.0}), backend="triton")


@pytest.mark.parametrize("entropy", [False, True])
def test_opcheck(entropy: bool) -> None:
    """Schema, shapes for tracing, autograd."""
    torch.use_deterministic_algorithms(False)
    case = problem(5, 6, 45)
    hidden, weight, bias = (case[name].nan_to_num().requires_grad_() for name in ("hidden", "weight", "bias"))
    logits = torch.randn(5, 45, requires_grad=True)
    torch.library.opcheck(token_logprobs.token_logprobs, (hidden, weight, bias, case["targets"], 0.7, entropy))
    torch.library.opcheck(logprobs.logprobs_from_logits, (logits, case["targets"], 0.7, entropy))


@pytest.mark.parametrize("op", ["token_logprobs", "logprobs_from_logits", "linear_policy_loss"])
def test_compiles_whole(op: str) -> None:
    torch.use_deterministic_algorithms(False)

    def case(rows: int) -> Arguments:
        if op == "linear_policy_loss":
            return loss_case(OPTION_SETS["entropy"], rows=rows, bias=False)
        found = problem(rows, 6, 45, bias=False) | {"entropy": True}
        if op == "logprobs_from_logits":
            found["logits"] = found.pop("hidden").nan_to_num() @ found.pop("weight").T
        return found

    def call(arguments: Arguments) -> Tensor:
        first, second = getattr(kernels, op)(**arguments, backend="triton")
        return first if op == "linear_policy_loss" else (first + 2 * second).sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9):
        arguments = case(rows)
        learnt = arguments["logits" if op == "logprobs_from_logits" else "weight"].requires_grad_()
        found, wanted = compiled(arguments), call(arguments)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, learnt), torch.autograd.grad(wanted, learnt))
