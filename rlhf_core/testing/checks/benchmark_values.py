"""What is asked of the values that a benchmark computes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...bench.case import Case
from ...bench.gate import distance
from ...contracts.benchmark import Benchmark
from ...failure import told
from ...kernels import BackendError
from ..check import Checks, NotApplicable, fail, fail_if, naming
from ..process import restore, settings_of_torch
from ..world import World
from .benchmark_trial import Trial, Tried, attempted, prepared, served, tried

check = Checks()

AGAIN = 1e-5
"""of the largest value: sums in another order are no other result"""


@check(
    "the outputs are those of the op's definition",
    why="a time of something else compares nothing; the harness shows FAILED in its place",
    cure="compare with outputs() in rlhf_core/bench/ops/<op>.py: masks, means over tokens or sequences, signs, and "
    "padding, which is only there where lengths differ",
)
def outputs_are_those_of_the_definition(benchmark: Benchmark, world: World) -> None:
    """In float32, with sequences of one length and of several."""
    for one in tried(benchmark, world):
        wrong = one.wrong(one.outputs())
        fail_if(bool(wrong), f"{one.trial}: {wrong}")


@check(
    "the gradients are those of the op's definition",
    why="mode=bwd and mode=full time the backward pass, which is most of training; a detached loss has none",
    cure="compute the loss (or out) from the tensors of case.packed or case.padded, not from copies, detached or "
    "made in prepare, and without no_grad",
)
def gradients_are_those_of_the_definition(benchmark: Benchmark, world: World) -> None:
    """Of all inputs that are learnt; which those are, the case says."""
    count = 0
    for one in tried(benchmark, world):
        if not one.trial.operation.learnt:
            continue
        count += 1
        with naming(f"the backward of {one.trial}"):
            gradients = one.gradients()
        missing = [name for name in one.trial.operation.learnt if f"grad_{name}" not in gradients]
        fail_if(bool(missing), f"{one.trial} gives no gradient for {' and '.join(missing)}")
        wrong = one.wrong(gradients)
        fail_if(bool(wrong), f"{one.trial}: {wrong}")
    if not count:
        raise NotApplicable("none of its ops has a gradient")


@check(
    "what is timed computes, and prepare does not",
    why="prepare is not timed: what is computed there looks as if it took no time",
    cure="let prepare load and lay out inputs alone, and the function it returns do the rest",
)
def computes_when_it_is_called(benchmark: Benchmark, world: World) -> None:
    """Some op has to run, or another tensor to come."""
    for one in tried(benchmark, world):
        first = one.prepared.forward()
        with _Counting() as ops:  # type: ignore[no-untyped-call]
            second = one.prepared.forward()
        same = all(second.get(name) is tensor for name, tensor in first.items())
        fail_if(same and not ops.count, f"a call for {one.trial} ran no op, and gave the tensors of the call before")


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the ops that run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One more."""
        self.count += 1
        return func(*args, **(kwargs or {}))


@check(
    "each call gives the same",
    why="a repetition is one of some hundred calls of the same function: what adds up, or works only once, is no time "
    "of the op",
    cure="make the graph and all buffers anew in each call; change nothing in place that the next call reads",
)
def each_call_gives_the_same(benchmark: Benchmark, world: World) -> None:
    """Outputs and gradients of three calls."""
    for one in tried(benchmark, world):
        first = _values(one)
        for call in ("second", "third"):
            with naming(f"the {call} call for {one.trial}"):
                found = _values(one)
            apart = _apart(first, found)
            fail_if(bool(apart), f"the {call} call for {one.trial} gave others: {apart}")


def _values(one: Tried) -> dict[str, Tensor]:
    """Outputs, and gradients where there are: that there are none is the matter of a check of its own."""
    found = {name: tensor.clone() for name, tensor in one.outputs().items()}
    if one.trial.operation.learnt and _differentiable(one):
        found |= one.gradients()
    return found


def _differentiable(one: Tried) -> bool:
    outputs = one.prepared.forward()
    return any(outputs[name].requires_grad for name in ("loss", "out") if name in outputs)


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    lost = sorted(one.keys() ^ other.keys())
    if lost:
        return f"{lost[0]} was there only once"
    for name, tensor in one.items():
        values, others = tensor.double().nan_to_num(), other[name].double().nan_to_num()
        if values.shape != others.shape:
            return f"{name} has shape {list(values.shape)}, and then {list(others.shape)}"
        error = distance(others, values)
        if not error <= AGAIN:
            return f"{name} differs by {error:.1e} of its largest value"
    return ""


@check(
    "cases do not mix",
    why="all cases of a pool are prepared before the first is timed, and each repetition takes another",
    cure="keep a case's inputs in the function that prepare returns, not in self",
)
def keeps_cases_apart(benchmark: Benchmark, world: World) -> None:
    """Two cases prepared, the first then called, against the first alone."""
    for trial in served(benchmark, world):
        alone = attempted(benchmark, trial)
        if alone is None:
            continue
        expected = alone.outputs()
        one = prepared(benchmark, trial)
        prepared(benchmark, replace(trial, seed=trial.seed + 1)).outputs()
        apart = _apart(expected, one.outputs())
        fail_if(bool(apart), f"{trial}, called after another case was prepared and called, gave others: {apart}")


@check(
    "the options of the case are read",
    why="an option that is written down in the implementation too is compared with another one some day",
    cure='take numbers from the case: case.number("beta")',
)
def reads_the_options(benchmark: Benchmark, world: World) -> None:
    """Each number another, for ops that are computed rightly with the usual ones."""
    count = 0
    for one in tried(benchmark, world):
        if not one.trial.operation.options or one.wrong(one.outputs()):
            continue
        count += 1
        changed = prepared(benchmark, replace(one.trial, other_options=True))
        try:
            wrong = changed.wrong(changed.outputs())
        except BackendError:
            continue
        except Exception as error:
            wrong = f"it raised {told(error)}"
        given = ", ".join(f"{name}={value}" for name, value in changed.prepared.case.options.items())
        fail_if(bool(wrong), f"{one.trial} with {given}: {wrong}")
    if not count:
        raise NotApplicable("none of its ops has options")


@check(
    "the inputs are left as they are",
    why="all implementations take the same inputs, in turns: what one changes, the next computes from",
    cure="clone what is changed in place; call no backward(), which leaves gradients in the inputs",
)
def leaves_the_inputs_as_they_are(benchmark: Benchmark, world: World) -> None:
    """Values, gradients and options, in both layouts."""
    for trial in served(benchmark, world):
        one = attempted(benchmark, trial)
        if one is None:
            continue
        case, fresh = one.prepared.case, trial.case()
        _values(one)
        changed = _changed(fresh, case)
        fail_if(bool(changed), f"{trial}: {changed}")


def _changed(fresh: Case, case: Case) -> str:
    for layout in ("packed", "padded"):
        for name, tensor in getattr(fresh, layout).items():
            there = getattr(case, layout).get(name)
            if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                return f"case.{layout}[{name!r}] is gone, or of another shape"
            if not torch.equal(tensor.detach(), there.detach()):
                return f"case.{layout}[{name!r}] was changed"
            if there.grad is not None:
                return f"case.{layout}[{name!r}] has a gradient, as backward() leaves it"
            if there.requires_grad != tensor.requires_grad:
                return f"requires_grad of case.{layout}[{name!r}] was changed"
    return "" if dict(fresh.options) == dict(case.options) else "case.options was changed"


@check(
    "other dtypes are computed, or why_not says why not",
    why="rlhf bench run dtype=bfloat16 asks why_not first; what it lets through and cannot do is shown as FAILED",
    cure='return a reason for dtypes that it does not take: "takes float32 alone"; sum in float32 where inputs are '
    "narrower",
)
def computes_the_dtypes_it_takes(benchmark: Benchmark, world: World) -> None:
    """bfloat16 and float64, of ops that it computes in float32."""
    right = {one.trial.op for one in tried(benchmark, world) if not one.wrong(one.outputs())}
    for dtype in (torch.bfloat16, torch.float64):
        for op in sorted(right):
            if benchmark.why_not(op, world.device, dtype) is None:
                _check_dtype(benchmark, Trial(op, "full", dtype, world.device))


def _check_dtype(benchmark: Benchmark, trial: Trial) -> None:
    try:
        one = prepared(benchmark, trial)
        wrong = one.wrong(one.outputs())
    except BackendError:  # ours says so when it is called
        return
    except Exception as error:
        fail(f"why_not gave None for {trial}, which raised {told(error)}")
    fail_if(bool(wrong), f"why_not gave None for {trial}: {wrong}")


@check(
    "the process is left as it was",
    why="all implementations are timed in one process, in turns: threads or precisions that one sets are set for all",
    cure="set such things nowhere, or back again in the function that is timed; they are the user's: threads=N",
)
def leaves_the_process_as_it_was(benchmark: Benchmark, world: World) -> None:
    """Threads, precision of products, default dtype, whether gradients are recorded."""
    precision = torch.get_float32_matmul_precision()
    unusual = {
        "grad_enabled": True,
        "num_threads": 1 + torch.get_num_threads(),
        "float32_matmul_precision": "high" if precision == "highest" else "highest",
        "default_dtype": torch.get_default_dtype(),
    }
    restore(unusual)  # the runner puts back what was
    for one in tried(benchmark, world):
        _values(one)
        after = settings_of_torch()
        changed = [f"{name} {value} became {after[name]}" for name, value in unusual.items() if after[name] != value]
        fail_if(bool(changed), f"after {one.trial}, {', '.join(changed)}")
