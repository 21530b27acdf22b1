"""Asking an implementation a check, and comparing what came with what was expected."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .check import Check, as_numbers
from .signatures import Implementation

FLOAT32 = 3e-5
"""The least tolerance where inputs are narrowed to float32: e^20 takes 20 times its rounding error."""

Status = Literal["agrees", "differs", "not offered", "raises"]


@dataclass(frozen=True)
class Result:
    """What came of one check of one implementation.

    Attributes:
        implementation: its name.
        check: which one.
        status: agrees, differs, not offered, raises.
        difference: the largest, as ``Check.tolerance`` counts it; infinite where NaN came; None where none came.
        came: the numbers, by the names in ``Check.expected``.
        reason: why it is not offered, or what was raised.
    """

    implementation: str
    check: Check
    status: Status
    difference: float | None = None
    came: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it disagrees."""
        return self.status in ("differs", "raises")


def ask(implementation: Implementation, check: Check) -> Result:
    """One result; whatever an implementation raises is one too."""
    refused = implementation.why_not(check.asked, check.inputs)
    if refused:
        return Result(implementation.name, check, "not offered", reason=refused)
    narrowed = implementation.float32 and check.dtype == torch.float64
    try:
        arguments = check.arguments(torch.float32 if narrowed else None, implementation.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a peer's deprecations are not what is asked
            came = check.probe(implementation.functions[check.asked], arguments)
        numbers = {name: as_numbers(value) for name, value in came.items()}
        difference = max((_difference(numbers[name], check.expected[name], name) for name in check.expected), default=0)
    except NotImplementedError as error:
        return Result(implementation.name, check, "not offered", reason=_line(error))
    except Exception as error:  # a stranger's function may raise anything at all
        return Result(implementation.name, check, "raises", reason=f"{type(error).__name__}: {_line(error)}")
    tolerance = max(check.tolerance, FLOAT32) if narrowed else check.tolerance
    status: Status = "agrees" if difference <= tolerance else "differs"
    return Result(implementation.name, check, status, difference, numbers)


def _difference(came: Any, expected: Any, name: str) -> float:
    """The largest over all numbers that are looked at."""
    return max((_one(number, wanted) for number, wanted in _pairs(came, expected, name)), default=0.0)


def _one(came: float, wanted: float) -> float:
    if came == wanted:
        return 0.0
    difference = abs(came - wanted) / max(1.0, abs(wanted))
    return difference if math.isfinite(difference) else math.inf


def _pairs(came: Any, expected: Any, name: str) -> Iterator[tuple[float, float]]:
    if isinstance(expected, list):
        if not isinstance(came, list) or len(came) != len(expected):
            size = len(came) if isinstance(came, list) else "a number"
            raise ValueError(f"{name}: expected {len(expected)} entries along a dimension, got {size}")
        for one, other in zip(came, expected, strict=True):
            yield from _pairs(one, other, name)
    elif expected is not None:
        if isinstance(came, list):
            raise ValueError(f"{name}: expected a number, got {len(came)} of them")
        yield came, expected


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
