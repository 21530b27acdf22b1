"""The equality gate: nothing is timed that does not compute the same.

For every output, and every gradient, relative to the largest absolute value of the reference (of a scalar, which is a
mean of terms of either sign and about 1, to at least 1):

    error = max|implementation − reference| ≤ 2·max|definition − reference| + s·ε

where the reference is the eager definition in float64 on the same inputs, and the definition is the same in the dtype
that is measured. ε is that of float32, or of float64 where that is measured. s = 8; for scalars, which sum n values in
whatever order, 8 + √n/16.

What frameworks keep between their ops, logits for one, has the dtype of the inputs; our definitions keep it in float32.
So what is not ours may be off by 8·ε of the inputs' dtype more, where that is narrower than float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Case
from .operation import Operation
from .prepared import Outputs, Prepared

SLACK, SUMMED = 8, 1 / 16
OURS = "ours"


class Unequal(Exception):
    """An implementation computes something else than the reference."""


@dataclass(frozen=True)
class Expected:
    """What a case has to give, and how far the definition itself is from it."""

    reference: Mapping[str, Tensor]
    errors: Mapping[str, float]
    epsilon: float
    values: int
    """n"""
    narrow: float
    """ε of the inputs' dtype where that is narrower than float32, else 0"""

    @property
    def error(self) -> float:
        """The definition's own largest error."""
        return max(self.errors.values())


def expected(operation: Operation, case: Case) -> Expected:
    """The reference of a case."""
    wide = case.wide()
    reference = results(operation, Prepared(wide, lambda: operation.outputs(wide, "eager")))
    own = results(operation, Prepared(case, lambda: operation.outputs(case, "eager")))
    errors = {name: distance(own[name], tensor) for name, tensor in reference.items()}
    dtypes = {tensor.dtype for tensor in case.packed.values() if tensor.is_floating_point()}
    epsilon = torch.finfo(torch.float64 if torch.float64 in dtypes else torch.float32).eps
    narrow = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.itemsize < 4), default=0.0)
    largest = max(tensor.numel() for tensor in case.packed.values())
    return Expected(reference, errors, epsilon, largest, narrow)


def check(operation: Operation, found: Mapping[str, Tensor], expected: Expected, kind: str = OURS) -> float:
    """The largest error of what an implementation gave, as ``compared`` has it.

    Args:
        operation: the op.
        found: outputs and gradients.
        expected: what they are compared with.
        kind: of the implementation; ours is held to the tighter limit.

    Raises:
        Unequal: it is over the limit, or an output is missing, of another shape, or named as no output is.
    """
    needed = (*operation.required, *(f"grad_{name}" for name in operation.learnt))
    if missing := [name for name in needed if name not in found]:
        raise Unequal(f"gives no {missing[0]}")
    between = 0.0 if kind == OURS else SLACK * expected.narrow
    largest = 0.0
    for name, tensor in found.items():
        if name not in expected.reference:
            raise Unequal(f"gives {name}, which is no output; there are {', '.join(expected.reference)}")
        reference = expected.reference[name]
        if tensor.shape != reference.shape:
            raise Unequal(f"{name} has shape {list(tensor.shape)}, expected {list(reference.shape)}")
        error = distance(tensor, reference)
        slack = SLACK if reference.dim() else SLACK + SUMMED * expected.values**0.5
        allowed = 2 * expected.errors[name] + slack * expected.epsilon + between
        if not error <= allowed:  # also where it is NaN
            raise Unequal(f"{name} is off by {error:.1e} of its largest value, allowed is {allowed:.1e}")
        largest = max(largest, error)
    return largest


def results(operation: Operation, prepared: Prepared) -> dict[str, Tensor]:
    """What is compared, of one call."""
    return compared(operation, prepared, prepared.forward())


def compared(operation: Operation, prepared: Prepared, outputs: Outputs) -> dict[str, Tensor]:
    """Outputs and gradients, packed."""
    gradients = prepared.gradients(outputs) if operation.learnt else {}
    # What begins with an underscore is a framework's own metric: computed there, and so timed, but not ours.
    detached = {name: tensor.detach() for name, tensor in outputs.items() if not name.startswith("_")}
    case = prepared.case
    packed = {name: case.to_packed(tensor) for name, tensor in operation.comparable(detached).items()}
    return packed | {name: case.gradient_to_packed(tensor) for name, tensor in gradients.items()}


def distance(tensor: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to the reference's largest value."""
    if not reference.numel():
        return 0.0
    scale = float(reference.abs().max())
    scale = max(scale, 1.0) if reference.dim() == 0 else scale or 1.0
    return float((tensor.double() - reference).abs().max()) / scale
