"""What is asked of every benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...bench.implementations import KINDS
from ...bench.ops import operations
from ...contracts.benchmark import Benchmark
from ...failure import told
from ...kernels import BackendError
from ...plugins import did_you_mean
from ..check import Check, Checks, fail, fail_if, naming
from ..world import World
from . import benchmark_values
from .benchmark_trial import Trial, covered, served

check = Checks()

LONGEST = 200
"""letters of a reason; it is a cell of a table"""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@check(
    "ops that rlhf bench knows",
    why="an op that the harness does not know is never measured, and nobody is told why",
    cure='ops: ClassVar[tuple[str, ...]] = ("ppo_loss",), a tuple with its comma, of names that rlhf bench list shows',
)
def covers_known_ops(benchmark: Benchmark, world: World) -> None:
    """At least one; each known, each once."""
    ops: Any = benchmark.ops
    fail_if(isinstance(ops, str), f"ops is one text, {ops!r}, whose letters would be taken for ops")
    fail_if(not isinstance(ops, Sequence | set | frozenset | Mapping), f"ops is {type(ops).__name__}, no tuple")
    names = list(ops)
    fail_if(not names, "ops is empty")
    for name in names:
        known = isinstance(name, str) and name in operations()
        fail_if(not known, f"{name!r} is no op{did_you_mean(str(name), operations())}")
    twice = sorted({name for name in names if names.count(name) > 1})
    fail_if(bool(twice), f"{', '.join(twice)} is there twice")


@check(
    "a kind: baseline, ours or peer",
    why="a regression of ours fails rlhf bench compare, and ours is held to a tighter limit; tables are in this order",
    cure='kind: ClassVar[str] = "peer"',
)
def says_what_kind_it_is(benchmark: Benchmark, world: World) -> None:
    """One of three words."""
    kind = benchmark.kind
    fail_if(kind not in KINDS, f"kind is {kind!r}{did_you_mean(str(kind), KINDS)}")


@check(
    "None where it can compute, else the reason in a few words",
    why="it is asked for every op, device and dtype before anything is measured, on machines without a GPU too; one "
    "that raises ends the benchmark of all others",
    cure='return None, or a short line such as "needs a CUDA device"; ask device.type before asking torch.cuda',
)
def says_why_not_in_a_few_words(benchmark: Benchmark, world: World) -> None:
    """Each of its ops, on a CPU and on a GPU that may not be there, in four dtypes; twice the same."""
    for op in covered(benchmark):
        for device in dict.fromkeys((world.device, torch.device("cpu"), torch.device("cuda"))):
            for dtype in DTYPES:
                asked = f"why_not({op!r}, {device}, {dtype})"
                reason, again = (_reason(benchmark, op, device, dtype, asked) for _ in range(2))
                fail_if(reason != again, f"{asked} gave {reason!r}, and the second time {again!r}")


def _reason(benchmark: Benchmark, op: str, device: torch.device, dtype: torch.dtype, asked: str) -> str | None:
    with naming(asked):
        reason: Any = benchmark.why_not(op, device, dtype)
    if reason is None:
        return None
    fail_if(not isinstance(reason, str), f"{asked} gave {type(reason).__name__} {reason!r}")
    fail_if(not reason.strip(), f"{asked} gave a blank text, which says that it cannot, and not why")
    long = "\n" in reason or len(reason) > LONGEST
    fail_if(long, f"{asked} gave {len(reason)} letters in {len(reason.splitlines())} lines: {reason[:60]!r}…")
    return str(reason)


@check(
    "what is timed gives the op's outputs, as tensors by their names",
    why="what raises, or gives other names, is shown as FAILED instead of a time",
    cure='return a function of no arguments that returns {"loss": …}; rlhf_core/bench/ops/<op>.py names the outputs; '
    "what it cannot do, why_not says",
)
def gives_outputs_by_name(benchmark: Benchmark, world: World) -> None:
    """Of sequences of one length, and of several."""
    for trial in served(benchmark, world):
        try:
            outputs: Any = _called(benchmark, trial)
        except BackendError:  # ours cannot compute this call: the harness says so in place of a time
            continue
        except Exception as error:
            fail(f"{trial} raised {told(error)}")
        _check_outputs(trial, outputs)


def _called(benchmark: Benchmark, trial: Trial) -> Any:
    case = trial.case()
    run: Any = benchmark.prepare(trial.operation.name, case)
    fail_if(not callable(run), f"prepare of {trial} gave {type(run).__name__}, nothing to call")
    return run()


def _check_outputs(trial: Trial, outputs: Any) -> None:
    fail_if(not isinstance(outputs, Mapping), f"{trial} gave {type(outputs).__name__}, no dict")
    for name, tensor in outputs.items():
        fail_if(not isinstance(tensor, Tensor), f"{name} of {trial} is {type(tensor).__name__}, no tensor")
    given = {name: tensor for name, tensor in outputs.items() if name[:1] != "_"}
    try:
        given = trial.operation.comparable(given)
    except KeyError as error:
        fail(f"{trial} gave {', '.join(outputs) or 'nothing'}, and no {error}")
    known = [name for name in trial.expected().reference if not name.startswith("grad_")]
    missing = [name for name in trial.operation.required if name not in given]
    fail_if(bool(missing), f"{trial} gave {', '.join(outputs) or 'nothing'}, and no {' and no '.join(missing)}")
    unknown = [name for name in given if name not in known]
    fail_if(bool(unknown), f"{trial} gave {unknown[0] if unknown else ''}, which is no output; there are {known}")


CHECKS: list[Check] = [*check, *benchmark_values.check]
