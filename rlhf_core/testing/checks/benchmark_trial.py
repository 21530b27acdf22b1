"""Small cases of ops, with what they have to give."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...bench.case import Case
from ...bench.gate import Expected, Unequal, expected
from ...bench.gate import check as gate
from ...bench.operation import LENGTHS, Operation
from ...bench.ops import operations
from ...bench.prepared import Prepared
from ...contracts.benchmark import Benchmark
from ..check import NotApplicable
from ..world import World

CPU = torch.device("cpu")

SHAPES = {
    "shaped_gae": "5x37",
    "ppo_loss": "5x37",
    "grpo_loss": "5x37",
    "ranking_loss": "6x5",
    "preference_loss": "11",
    "attention": "3x19x4x2x32",
    "attention_shared": "2x11x3x5x4x2x32",
    "decode_attention": "5x19x6x2x32",
    "decode_attention_shared": "2x11x3x5x6x2x32",
    "token_logprobs": "70x16x37",
    "token_logprobs_entropy": "70x16x37",
    "logprobs_from_logits": "70x37",
    "linear_policy_loss": "70x16x37x40",
}
"""of an op that is not here, the first of its preset ci"""

OTHER = 0.6
"""what options are multiplied by to see whether they are read"""


@dataclass(frozen=True)
class Trial:
    """One case; the same each time that it is made."""

    op: str
    lengths: str = "full"
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    seed: int = 3
    other_options: bool = False

    def __str__(self) -> str:
        """How messages name it."""
        said = [self.lengths] if self.operation.sequences else []
        said += [str(self.dtype).removeprefix("torch.")] if self.dtype != torch.float32 else []
        return f"{self.op} ({', '.join(said)})" if said else self.op

    @property
    def operation(self) -> Operation:
        """The op."""
        return operations()[self.op]

    def case(self) -> Case:
        """A new one, whose tensors are nobody else's."""
        shape = SHAPES.get(self.op) or self.operation.presets["ci"][0]
        case = self.operation.case(shape, self.lengths, self.dtype, self.device, self.seed)
        if self.other_options:
            numbers = {name: value for name, value in case.options.items() if isinstance(value, float)}
            case.options = {**case.options, **{name: OTHER * value for name, value in numbers.items()}}
        return case

    def expected(self) -> Expected:
        """Outputs and gradients."""
        return _expected(self)


@cache
def _expected(trial: Trial) -> Expected:
    return expected(trial.operation, trial.case())


@dataclass(frozen=True)
class Tried:
    """A trial that an implementation is prepared for."""

    trial: Trial
    prepared: Prepared
    kind: str

    def outputs(self) -> dict[str, Tensor]:
        """What it gives, packed, as far as it is known: what is missing or unknown is the matter of another check."""
        operation, case = self.trial.operation, self.prepared.case
        given = {name: tensor.detach() for name, tensor in self.prepared.forward().items() if name[:1] != "_"}
        known = self.trial.expected().reference
        return {name: case.to_packed(t) for name, t in operation.comparable(given).items() if name in known}

    def gradients(self) -> dict[str, Tensor]:
        """Of the inputs that are learnt, packed."""
        found = self.prepared.gradients(self.prepared.forward())
        return {name: self.prepared.case.gradient_to_packed(tensor) for name, tensor in found.items()}

    def wrong(self, found: Mapping[str, Tensor]) -> str:
        """What the gate says of some of what is compared, where the rest is right."""
        oracle = self.trial.expected()
        rest = {name: tensor for name, tensor in oracle.reference.items() if name not in found}
        try:
            gate(self.trial.operation, {**rest, **found}, oracle, self.kind)
        except Unequal as error:
            return str(error)
        return ""


def covered(benchmark: Benchmark) -> list[str]:
    """The ops that it covers, of those that there are."""
    ops: Any = benchmark.ops
    return [op for op in dict.fromkeys([ops] if isinstance(ops, str) else ops) if op in operations()]


def served(benchmark: Benchmark, world: World, dtype: torch.dtype = torch.float32) -> list[Trial]:
    """A trial of each op that it says it can compute on the world's device.

    Raises:
        NotApplicable: there is none.
    """
    reasons = {op: _why_not(benchmark, op, world.device, dtype) for op in covered(benchmark)}
    trials = [
        Trial(op, lengths, dtype, world.device)
        for op, reason in reasons.items()
        if reason is None
        for lengths in (LENGTHS if operations()[op].sequences else LENGTHS[:1])
    ]
    if not trials:
        raise NotApplicable("; ".join(dict.fromkeys(str(reason) for reason in reasons.values())) or "it covers no op")
    return trials


def _why_not(benchmark: Benchmark, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        return benchmark.why_not(op, device, dtype)
    except Exception as error:  # another check says so
        return f"why_not raised {type(error).__name__}"


def tried(benchmark: Benchmark, world: World) -> Iterator[Tried]:
    """Those that give outputs; that others do not is the matter of a check of its own."""
    count = 0
    for trial in served(benchmark, world):
        found = attempted(benchmark, trial)
        if found is not None:
            count += 1
            yield found
    if not count:
        raise NotApplicable("none of its ops gives outputs, as gives_outputs_by_name says")


def attempted(benchmark: Benchmark, trial: Trial) -> Tried | None:
    """An implementation prepared for a trial, not called; None where it does not give all outputs."""
    try:
        given = prepared(benchmark, trial).outputs()
    except Exception:  # see `tried`; a stranger's code may raise anything
        return None
    return prepared(benchmark, trial) if given.keys() >= set(trial.operation.required) else None


def prepared(benchmark: Benchmark, trial: Trial) -> Tried:
    """An implementation prepared for a trial, not called."""
    case = trial.case()
    forward: Callable[[], Mapping[str, Tensor]] = benchmark.prepare(trial.op, case)
    return Tried(trial, Prepared(case, forward), str(getattr(benchmark, "kind", "peer")))
