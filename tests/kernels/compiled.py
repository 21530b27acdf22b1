"""What the tests of the ops compiled for CPUs share: when to skip, how close is close, and what gives the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import kernels

from .cases import compare
from .conftest import reason_without

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *NARROW, torch.float64)
Found = dict[str, Tensor]


def counts(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def needs_cpu(op: str) -> pytest.MarkDecorator:
    """Skips where the extension is not here, and says why."""
    reason = reason_without(op, "cpu")
    return pytest.mark.skipif(bool(reason), reason=f"cpu: {reason}")


def to(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """With every floating tensor that is not a single number in ``dtype``."""

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dim() else x

    return {name: cast(x) for name, x in case.items()}


def near(found: Found, single: Found, exact: Found, dtype: torch.dtype, small: float = 1e-6) -> None:
    """As near to float64 as the definition in the same dtype, twice over, and a little; float64 is float64's.

    Args:
        found: by the backend that is tested; gradients are named ``d_…``.
        single: by the definition in ``dtype``.
        exact: by the definition in float64.
        dtype: of the inputs. Products take a narrow one, so what lies between two of them is rounded to it, too.
        small: of the largest number, for float32; ten times that for gradients, which are differences.
    """
    if dtype != torch.float64:
        for gradients, factor in ((False, 1), (True, 10)):
            sides = [
                {n: x for n, x in side.items() if n.startswith("d_") == gradients} for side in (found, single, exact)
            ]
            compare(*sides, torch.finfo(dtype).eps / 4 if dtype in NARROW else factor * small)
        return
    for name, wanted in exact.items():
        assert found[name].dtype == wanted.dtype, name
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def same(found: Found, wanted: Found) -> None:
    """To the bit."""
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many of them, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def poisoned(wanted: bool = True) -> Iterator[None]:
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def stridden(x: Tensor) -> dict[str, Tensor]:
    """The same numbers ``[rows, …, size]``, lying otherwise in memory."""
    last = torch.stack([x, x + 1], -1)[..., 0]
    rows = torch.stack([x, x + 1], 1).flatten(0, 1)[::2]
    shifted = torch.cat([x[..., :1], x], -1)[..., 1:]
    swapped = x.transpose(0, -2).contiguous().transpose(0, -2) if x.dim() > 2 else x.t().contiguous().t()
    return {"last": last, "rows": rows, "shifted": shifted, "swapped": swapped}


def head_case(rows: int, size: int, vocabulary: int, bias: bool = True) -> dict[str, Any]:
    """A head and labels; every third row has none, and NaN in it."""
    case: dict[str, Any] = {"hidden": torch.randn(rows, size) / size**0.5, "weight": 3 * torch.randn(vocabulary, size)}
    case |= {"targets": torch.randint(0, vocabulary, (rows,))} | ({"bias": torch.randn(vocabulary)} if bias else {})
    case["targets"][1::3] = -100
    case["hidden"][1::3] = torch.nan
    return case


def outcome(op: str, case: dict[str, Any], backend: str, upstream: float = 1.0) -> Found:
    """All that an op of a head or of logits gives, and gradients, with other weights for every output of a row."""
    names = [name for name in ("hidden", "weight", "bias", "logits", "values") if case.get(name) is not None]
    learnt = {name: case[name].detach().requires_grad_() for name in names}
    found = getattr(kernels, op)(**case | learnt, backend=backend)
    if op == "linear_policy_loss":
        outputs = {"loss": found[0]} | found[1]
        ways = {found[0]: torch.full_like(found[0], upstream)}
    else:
        pair = found if isinstance(found, tuple) else (found,)
        outputs = dict(zip(("logprobs", "entropy"), pair, strict=False))
        ways = {x: upstream * (-1) ** n * torch.linspace(1, 2, len(x), dtype=x.dtype) for n, x in enumerate(pair)}
    gradients = torch.autograd.grad(list(ways), list(learnt.values()), list(ways.values()), materialize_grads=True)
    return {n: x.detach() for n, x in outputs.items()} | {f"d_{n}": x for n, x in zip(names, gradients, strict=True)}
