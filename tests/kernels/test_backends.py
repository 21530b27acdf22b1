"""Every op on every backend that is here, against its definition in float64, for every option.

The Triton kernels run on a GPU, or interpreted in a process of their own:
``TRITON_INTERPRET=1 pytest tests/kernels -k triton``.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_core import kernels
from rlhf_core.batch import offsets
from rlhf_core.kernels import triton as triton_backend

from .cases import LEARNT, OPTIONS, Case, build, choices, compare, covering
from .conftest import reason_without

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:  # numpy, which then computes, speaks up where a GPU gives infinity
    pytestmark = [
        pytest.mark.filterwarnings("ignore::RuntimeWarning"),
        pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # triton 3.6 with numpy 2.3
    ]

# Around the widths of vectors, warps and blocks. The interpreter scans a token at a time in Python, in blocks of 32.
REAL = [[129, 0, 1, 3], [127, 128, 0], [1], [0, 5, 0, 2, 17], [16, 15, 33], [513, 2]]
LENGTHS = [[33, 0, 1, 3], [31, 32, 0], [1], [0, 5, 0, 2, 17], [65, 2]] if INTERPRETED else REAL

PLACES = [("eager", "cpu"), ("cpu", "cpu"), ("triton", "cpu"), ("eager", "cuda"), ("triton", "cuda"), ("cuda", "cuda")]
MASKED = ("shaped_gae", "ppo_loss", "grpo_loss")
LOSSES = tuple(op for op in OPTIONS if op != "shaped_gae")


class Target(NamedTuple):
    op: str
    backend: str
    device: str

    def run(self, case: Case) -> dict[str, Tensor]:
        """What it gives, brought to the host. What a kernel did not write is NaN."""
        with _poisoned(self.backend != "eager"):
            return {name: tensor.cpu() for name, tensor in case.on(self.device).run(self.backend).items()}

    def check(self, case: Case, small: float = 1e-6) -> dict[str, Tensor]:
        found, single = self.run(case), case.run("eager")
        compare(found, single, case.to(torch.float64).run("eager"), small)
        return found


@contextmanager
def _poisoned(wanted: bool) -> Iterator[None]:
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(wanted)
    yield
    torch.use_deterministic_algorithms(False)


def targets(ops: tuple[str, ...] = tuple(OPTIONS), without: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """The test takes each op on each backend and device; those that are not here are skipped, and say why."""
    found = []
    for op in ops:
        for backend, device in PLACES:
            if backend not in without:
                marks, name = ((), "") if device == "cpu" else (pytest.mark.gpu, "-gpu")
                found.append(pytest.param(Target(op, backend, device), id=f"{op}-{backend}{name}", marks=marks))
    return pytest.mark.parametrize("target", found, indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Target:
    op, backend, device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if reason := reason_without(op, backend):
        pytest.skip(f"{backend}: {reason}")
    if backend == "triton" and (device == "cpu") != INTERPRETED:
        pytest.skip(f"triton runs on {'the CPU under' if INTERPRETED else 'a GPU without'} TRITON_INTERPRET=1")
    return request.param


def some(op: str, count: int = 4, **changes: Any) -> list[Case]:
    """Calls spread over the covering ones, with some options as given, of a few short sequences."""
    chosen = covering(op)[:: max(1, len(covering(op)) // count)][:count]
    known = {name: value for name, value in changes.items() if name in OPTIONS[op]}
    return [build(op, choice | known, [5, 0, 17, 2, 9], seed) for seed, choice in enumerate(chosen)]


@targets()
def test_every_pair_of_options(target: Target) -> None:
    for number, choice in enumerate(covering(target.op)):
        lengths = LENGTHS[number % len(LENGTHS)]
        try:
            target.check(build(target.op, choice, lengths, seed=number))
        except AssertionError as error:
            error.add_note(f"{choice} on lengths {lengths}, seed {number}")
            raise


@targets()
@settings(max_examples=10 if INTERPRETED else 25)
@given(data=st.data())
def test_anything(target: Target, data: st.DataObject) -> None:
    choice = data.draw(choices(target.op))
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=8))
    target.check(build(target.op, choice, lengths, data.draw(st.integers(0, 2**31))))


@targets()
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
def test_nothing_at_all(target: Target, lengths: list[int]) -> None:
    for choice in covering(target.op)[::5]:
        found = target.check(build(target.op, choice, lengths))
        assert all(not tensor.any() for tensor in found.values())


@targets(MASKED)
def test_nothing_valid(target: Target) -> None:
    for case in some(target.op, mask="none"):
        assert all(not tensor.any() for tensor in target.check(case).values())


@targets(MASKED)
@pytest.mark.parametrize("dirt", [math.nan, math.inf, -math.inf])
def test_masked_slots_never_leak(target: Target, dirt: float) -> None:
    """CORRECTNESS 7: not a bit changes, and there is 0 in them."""
    for case in some(target.op, 3 if INTERPRETED else 6, mask="some"):
        mask = case.arguments["mask"]

        def spoilt(name: str, x: Tensor, mask: Tensor = mask) -> Tensor:
            per_token = x.is_floating_point() and x.shape == mask.shape
            return torch.where(mask, x, torch.tensor(dirt)) if per_token else x

        clean, dirty = target.run(case), target.run(case.changed(spoilt))
        for name, tensor in clean.items():
            assert torch.equal(tensor, dirty[name]), name
            assert tensor.shape != mask.shape or not tensor[~mask].any(), name


@targets(("shaped_gae",))
def test_infinite_kl_without_a_price(target: Target) -> None:
    logprobs, ref = torch.tensor([0.0, -1.0, -2.0]), torch.tensor([-torch.inf, -1.0, -1.0])
    call = {"scores": torch.ones(1), "values": torch.zeros(3), "cu_seqlens": offsets([3])}
    found = target.run(Case("shaped_gae", call | {"logprobs": logprobs, "ref_logprobs": ref}))
    assert found["kl"].tolist() == [torch.inf, 0.0, -1.0] and found["advantages"].isfinite().all()


@targets(("shaped_gae",))
def test_variance_of_far_away_numbers(target: Target) -> None:
    """CORRECTNESS 8: E[x²] − E[x]² in float32 would give 0 or less."""
    lengths = [160, 1, 1] if INTERPRETED else [3000, *[1] * 1000]
    values, mask = 10_000 + torch.randn(sum(lengths)), torch.rand(sum(lengths)) < 0.6
    call = {"scores": torch.zeros(len(lengths)), "values": values, "cu_seqlens": offsets(lengths), "mask": mask}
    found = target.run(Case("shaped_gae", call | {"gamma": 0.0}))
    assert found["var"].item() == pytest.approx(values[mask].double().var(unbiased=False).item(), rel=1e-4)
    assert found["mean"].item() == pytest.approx(-values[mask].double().mean().item(), rel=1e-7)


@targets()
def test_strides(target: Target) -> None:
    """Neither contiguous nor aligned: not a bit changes."""
    for case in some(target.op, 2 if INTERPRETED else 4):

        def strided(name: str, x: Tensor) -> Tensor:
            return x if x.dim() == 0 else torch.stack([x, x, x], 1).flatten()[1::3]

        same(target.run(case), target.run(case.changed(strided)))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@targets()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs(target: Target, dtype: torch.dtype) -> None:
    """float32 inside and out; gradients in the dtype of their input."""
    for case in some(target.op, 2 if INTERPRETED else 4):
        found = target.check(case.to(dtype))
        for name, tensor in found.items():
            assert tensor.dtype == (
                dtype if name.startswith("d_") else torch.int64 if name == "count" else torch.float32
            )


@targets(without=("eager",))
def test_float64_is_equal_or_refused(target: Target) -> None:
    for case in some(target.op, 12):
        wide = case.to(torch.float64)
        if target.backend != "cpu":
            with pytest.raises(ValueError, match=f"backend={target.backend} cannot compute {target.op}.*float64"):
                target.run(wide)
            continue
        found, exact = target.run(wide), wide.run("eager")
        for name, wanted in exact.items():
            torch.testing.assert_close(
                found[name], wanted, rtol=1e-12, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
            )


@targets(LOSSES, without=("eager", "triton", "cuda"))
def test_gradcheck(target: Target) -> None:
    """By differences, which random numbers keep away from the kinks, and which know nothing of cispo's sg."""
    for case in some(target.op, 12, ratios="near"):
        if case.arguments.get("kind") == "cispo":
            continue
        wide = case.to(torch.float64)
        learnt = {name: wide.arguments[name] for name in LEARNT if name in wide.arguments}

        def loss(*inputs: Tensor, wide: Case = wide, names: tuple[str, ...] = tuple(learnt)) -> Tensor:
            arguments = wide.arguments | dict(zip(names, inputs, strict=True))
            return getattr(kernels, wide.op)(**arguments, backend="cpu")[0]

        assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in learnt.values()])


@targets(without=("eager",))
def test_runs_are_identical(target: Target) -> None:
    case = build(target.op, covering(target.op)[0], [40, 0, 9] if INTERPRETED else [700, 0, 5, 900, 64])
    first = target.run(case)
    for _ in range(3 if INTERPRETED else 50):
        same(target.run(case), first)


@targets(MASKED, without=("eager",))
def test_no_matter_what_else_is_in_the_batch(target: Target) -> None:
    """A sequence's numbers are the same, to the bit, in another order of the batch and alone."""
    lengths = [33, 5, 0, 40] if INTERPRETED else [129, 5, 0, 1000, 64]
    for choice in covering(target.op)[:: 8 if INTERPRETED else 4]:
        case = build(target.op, choice | {"denominator": 7.0}, lengths)
        whole = target.run(case)
        for order in ([3, 1, 0], [0]):
            part = target.run(_sequences(case, lengths, order))
            for name, tensor in whole.items():
                if len(tensor.shape) and len(tensor) == sum(lengths):
                    split = tensor.split(lengths)
                    assert torch.equal(part[name], torch.cat([split[b] for b in order])), name


def _sequences(case: Case, lengths: list[int], order: list[int]) -> Case:
    def picked(name: str, x: Tensor) -> Tensor:
        if name == "cu_seqlens":
            return offsets([lengths[b] for b in order])
        if x.dim() == 0:
            return x
        return x[torch.tensor(order)] if len(x) == len(lengths) else torch.cat([x.split(lengths)[b] for b in order])

    return case.changed(picked)


class Calls(TorchDispatchMode):
    """The registered ops that were called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("rlhf"):
            self.found.append((func, args))
        return func(*args, **(kwargs or {}))


@targets(without=("eager",))
def test_opcheck(target: Target) -> None:
    """Schema, shapes for tracing, autograd, torch.compile's own tests."""
    for case in some(target.op, 2):
        with Calls() as calls:
            case.on(target.device).run(target.backend)
        ((op, arguments),) = calls.found
        torch.library.opcheck(
            op, tuple(x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments)
        )


@targets(without=("eager",))
def test_compiles_whole_with_two_sizes(target: Target) -> None:
    """One graph, forward and backward, whatever the size."""
    counter = CompileCounterWithBackend("aot_eager")
    choice = covering(target.op)[0]
    cases = [build(target.op, choice, lengths).on(target.device) for lengths in ([4, 0, 9], [3, 8, 2, 10])]
    numbers = {name: x for name, x in cases[0].arguments.items() if not isinstance(x, Tensor)}

    def call(arguments: dict[str, Tensor]) -> Any:
        found = getattr(kernels, target.op)(**arguments, **numbers, backend=target.backend)
        return tuple(found) if target.op == "shaped_gae" else found[0] * 2

    compiled, graphs = torch.compile(call, fullgraph=True, dynamic=True, backend=counter), []
    for case in cases:
        learnt = {n: x.requires_grad_(n in LEARNT) for n, x in case.arguments.items() if isinstance(x, Tensor)}
        results = [compiled(learnt), call(learnt)]
        if target.op != "shaped_gae":
            inputs = [x for x in learnt.values() if x.requires_grad]
            results = [(loss, *torch.autograd.grad(loss, inputs, materialize_grads=True)) for loss in results]
        for found, wanted in zip(*results, strict=True):
            assert torch.equal(found, wanted)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


def test_why_triton_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton_backend, "find_spec", lambda name: name)
    assert triton_backend.why_not() == "needs a CUDA device (or TRITON_INTERPRET=1 for tests)"
    monkeypatch.setattr(triton_backend, "find_spec", lambda name: None)
    assert triton_backend.why_not() == "triton is not installed; pip install triton"

    def fail(name: str) -> None:
        raise ImportError("no tl.gather\n in this triton")

    monkeypatch.setattr(triton_backend, "import_module", fail)
    found = triton_backend._implementation("shaped_gae", None)
    assert found.unavailable == "cannot be loaded: no tl.gather in this triton"


def test_triton_is_not_imported_where_it_cannot_run() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    script = "import sys; from rlhf_core import kernels; assert 'triton' not in sys.modules; kernels.status()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
