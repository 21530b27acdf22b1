"""linear_policy_loss in C++ against its definition in float64: gradients formed forward, in pieces of rows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.batch import offsets
from rlhf_core.kernels.native import linear_policy_loss as native

from .cases import compare
from .compiled import DTYPES, NARROW, Found, head_case, near, needs_cpu, outcome, same, stridden, threads, to

pytestmark = needs_cpu("linear_policy_loss")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "entropy": {"entropy_coef": 0.02, "temperature": 0.8},
    "entropy for show": {"entropy": True, "clip_high": 0.3, "dual_clip": 1.5},
    "narrow clip": {"clip_low": 0.01, "clip_high": 0.02, "temperature": 2.0},
    "values": {"value_clip": 0.2, "value_coef": 0.7, "whiten": (0.3, 2.0)},
    "values without a clip": {"value_clip": None, "whiten": (0.3, 2.0), "shift_mean": False, "entropy_coef": 0.1},
    "whiten by tensors": {"whiten": (torch.tensor(0.3), torch.tensor(2.0))},
    "k1": {"kl_coef": 0.1, "kl_estimator": "k1"},
    "k2": {"kl_coef": 0.1, "kl_estimator": "k2", "dual_clip": 2.0},
    "kl": {"kl_coef": 0.1, "kl_estimator": "k3", "importance": True, "denominator": 7.0},
    "importance": {"importance": True, "entropy_coef": 0.02},
    "constant": {"aggregate": "constant", "denominator": torch.tensor(9.0), "entropy_coef": 0.02},
    "sequence": {"aggregate": "sequence", "entropy_coef": 0.02, "value_clip": 0.2, "kl_coef": 0.1},
    "sequence, global": {"aggregate": "sequence", "denominator": 3.0},
    "offsets of no use": {"cu_seqlens": True, "denominator": torch.tensor(6)},
    "no mask but labels": {"mask": None, "entropy_coef": 0.1},
    "nothing counts": {"mask": False, "entropy_coef": 0.1},
}


def loss_case(
    choice: dict[str, Any], rows: int = 37, size: int = 33, vocabulary: int = 517, bias: bool = True
) -> dict[str, Any]:
    """A call; NaN in the hidden states of tokens that are masked or have no label."""
    case = head_case(rows, size, vocabulary, bias)
    with torch.no_grad():
        found = kernels.token_logprobs(**case, temperature=choice.get("temperature", 1.0), backend="eager")
    case |= choice | {"old_logprobs": found + 0.3 * torch.randn(rows), "advantages": torch.randn(rows)}
    if choice.get("mask", True) is not None:
        case["mask"] = torch.rand(rows) < (0.7 if choice.get("mask", True) else 0.0)
        case["hidden"][~case["mask"]] = math.nan
    if "value_clip" in choice:
        case |= {name: torch.randn(rows) for name in ("values", "old_values", "returns")}
    if "kl_coef" in choice:
        case["ref_logprobs"] = found + 0.3 * torch.randn(rows)
    if "importance" in choice:
        case["importance"] = torch.rand(rows) + 0.5
    if choice.get("aggregate") == "sequence" or "cu_seqlens" in choice:
        case["cu_seqlens"] = offsets([rows // 2, 0, rows - rows // 2])
    return case


def check(case: dict[str, Any], dtype: torch.dtype = torch.float32, upstream: float = 1.0) -> Found:
    """Loss and metrics are float32 whatever the inputs; only the head is narrow.

    Narrow gradients wait for what comes from above, and are rounded once more than the definition's when it does.
    """
    head = ("hidden", "weight", "bias")

    def narrowed(wide: torch.dtype) -> dict[str, Any]:
        given = to(case, torch.float64) if wide == torch.float64 else dict(case)
        return given | {name: case[name].to(dtype).to(wide) for name in head if name in case}

    sides = (
        outcome("linear_policy_loss", narrowed(dtype), "cpu", upstream),
        outcome("linear_policy_loss", narrowed(dtype), "eager", upstream),
        outcome("linear_policy_loss", narrowed(torch.float64), "eager", upstream),
    )
    for gradients in (False, True):
        some = [{n: x for n, x in side.items() if n.startswith("d_") == gradients} for side in sides]
        if gradients and dtype in NARROW:
            compare(*some, torch.finfo(dtype).eps / 2)
        else:
            near(*some, dtype if dtype == torch.float64 else torch.float32)
    return sides[0]


@pytest.fixture(params=["whole", "pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, or 256 at a time."""
    if request.param == "pieces":
        monkeypatch.setattr(native, "KEPT_BYTES", 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str, bias: bool, dtype: torch.dtype) -> None:
    found = check(loss_case(OPTIONS[name], bias=bias), dtype, upstream=-1.5)
    if name == "nothing counts":
        assert not any(tensor.any() for tensor in found.values())


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["entropy", "values without a clip", "kl", "constant", "sequence"])
def test_many_rows(name: str, dtype: torch.dtype) -> None:
    """More than a piece; in pieces the loss divides by the count of them all."""
    check(loss_case(OPTIONS[name], rows=1100, size=64, vocabulary=130), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "vocabulary"), [(64, 50), (96, 2049), (700, 1000)])
def test_sizes(size: int, vocabulary: int, dtype: torch.dtype) -> None:
    check(loss_case(OPTIONS["entropy"], size=size, vocabulary=vocabulary), dtype)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", ["plain", "values", "sequence", "entropy"])
def test_next_to_nothing(name: str, rows: int) -> None:
    check(loss_case(OPTIONS[name], rows=rows))


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("name", ["entropy", "sequence", "values"])
def test_what_is_masked_is_not_read(name: str) -> None:
    """Whatever else holds NaN there, too."""
    case = loss_case(OPTIONS[name], rows=600)
    dropped = ~case["mask"] | (case["targets"] == -100)
    dirty = {n: x.clone() for n, x in case.items() if isinstance(x, Tensor) and x.is_floating_point() and len(x) == 600}
    for tensor in dirty.values():
        tensor[dropped] = math.nan
    clean = {name: x.nan_to_num() for name, x in dirty.items()}
    found, wanted = (outcome("linear_policy_loss", case | x, "cpu") for x in (dirty, clean))
    same(found, wanted)
    assert not found["d_hidden"][dropped].any() and found["loss"].isfinite()


@pytest.mark.parametrize("name", ["entropy", "values", "sequence"])
def test_a_graph_is_gone_through_twice(name: str) -> None:
    case = loss_case(OPTIONS[name])
    leaves = {n: case[n].requires_grad_() for n in ("hidden", "weight", "bias", "values") if n in case}
    loss, metrics = kernels.linear_policy_loss(**case, backend="cpu")
    assert loss.requires_grad and not any(x.requires_grad for x in metrics.values())
    first = torch.autograd.grad(loss, list(leaves.values()), torch.tensor(3.0), retain_graph=True)
    second = torch.autograd.grad(2 * loss.square() / loss.detach(), list(leaves.values()), retain_graph=True)
    third = torch.autograd.grad(loss, list(leaves.values()))
    for one, two, three in zip(first, second, third, strict=True):
        torch.testing.assert_close(one, 3 * three)
        torch.testing.assert_close(two, 4 * three)


def test_without_gradients_and_with_some() -> None:
    """The same loss and metrics; frozen weights get none."""
    case = loss_case(OPTIONS["values"])
    wanted = outcome("linear_policy_loss", case, "cpu")
    with torch.no_grad():
        loss, metrics = kernels.linear_policy_loss(**case, backend="cpu")
    assert not loss.requires_grad
    for name, tensor in (metrics | {"loss": loss}).items():
        torch.testing.assert_close(tensor, wanted[name])
    for name in ("hidden", "weight", "bias", "values"):
        leaf = case[name].clone().requires_grad_()
        loss, _ = kernels.linear_policy_loss(**case | {name: leaf}, backend="cpu")
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], wanted[f"d_{name}"])


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_runs_and_threads(dtype: torch.dtype) -> None:
    """Not a bit changes."""
    case = loss_case(OPTIONS["entropy"], rows=600)
    case |= {name: case[name].to(dtype) for name in ("hidden", "weight", "bias")}
    first = outcome("linear_policy_loss", case, "cpu")
    for number in range(10):
        with threads(1 + number % 2):
            same(outcome("linear_policy_loss", case, "cpu"), first)
    for way in ("last", "rows", "shifted", "swapped"):
        odd = {name: stridden(case[name])[way] for name in ("hidden", "weight")}
        names = ("bias", "targets", "mask", "old_logprobs", "advantages")
        odd |= {name: torch.stack([case[name]] * 2, 1)[:, 0] for name in names}
        same(outcome("linear_policy_loss", case | odd, "cpu"), first)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    """With a given denominator a row's gradient is the same bits in another order and alone."""
    case = loss_case(OPTIONS["kl"], rows=600)
    case |= {name: case[name].to(dtype) for name in ("hidden", "weight", "bias")}
    whole = outcome("linear_policy_loss", case, "cpu")["d_hidden"]
    kept = (case["mask"] & (case["targets"] >= 0)).nonzero()[:, 0]
    for picked in (torch.randperm(600), kept[[5]], kept[50:90]):
        per_row = {n: x[picked] for n, x in case.items() if isinstance(x, Tensor) and x.dim() and len(x) == 600}
        assert torch.equal(outcome("linear_policy_loss", case | per_row, "cpu")["d_hidden"], whole[picked])


def test_gradcheck() -> None:
    case = to(loss_case(OPTIONS["values without a clip"], rows=7, size=3, vocabulary=11), torch.float64)
    case["hidden"] = case["hidden"].nan_to_num()
    names = ("hidden", "weight", "bias", "values")

    def loss(*leaves: Tensor) -> Tensor:
        return kernels.linear_policy_loss(**case | dict(zip(names, leaves, strict=True)), backend="cpu")[0]

    assert torch.autograd.gradcheck(loss, [case[name].requires_grad_() for name in names])


def test_compiles_whole_with_two_sizes() -> None:
    torch._dynamo.reset()

    def call(arguments: dict[str, Tensor]) -> Tensor:
        return kernels.linear_policy_loss(**arguments, entropy_coef=0.02, backend="cpu")[0]

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9):
        case = loss_case({}, rows=rows)
        leaf = case["weight"].requires_grad_()
        found, wanted = compiled(case), call(case)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(*(torch.autograd.grad(x, leaf)[0] for x in (found, wanted)))


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("clip_low", {"clip_low": 2.0}),
        ("old_logprobs", {"old_logprobs": torch.zeros(3)}),
        ("old_logprobs", {"old_logprobs": torch.zeros(50)}),
        ("advantages", {"advantages": torch.zeros(3)}),
        ("ref_logprobs", {"ref_logprobs": torch.zeros(3), "kl_coef": 0.1}),
        ("values", {"values": torch.zeros(3), "returns": torch.zeros(37)}),
        ("mask", {"mask": torch.ones(37)}),
        ("aggregate", {"aggregate": "mean"}),
        ("targets", {"targets": torch.full((37,), 517)}),
        ("weight", {"weight": torch.zeros(517, 32)}),
    ],
)
def test_bad_input_is_named(argument: str, changes: dict[str, Any]) -> None:
    """With gradients and without."""
    case = loss_case({}) | changes
    for trained in (False, True):
        case["hidden"].requires_grad_(trained)
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            kernels.linear_policy_loss(**case, backend="cpu")


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="clip_hihg"):
        kernels.linear_policy_loss(**loss_case({}), clip_hihg=0.3, backend="cpu")
