"""All of a run as JSON."""

import math
from typing import Any

import torch

from .. import __version__
from .check import Check
from .run import Result
from .signatures import Implementation


def record(implementations: list[Implementation], checks: list[Check], results: list[Result]) -> dict[str, Any]:
    """What ``--json`` writes: versions, implementations, and each check with its golden vector and results."""
    return {
        "versions": {"rlhf-core": __version__, "torch": torch.__version__},
        "implementations": [_implementation(implementation) for implementation in implementations],
        "checks": [_check(check) | {"results": _results(check, results)} for check in checks],
    }


def _implementation(implementation: Implementation) -> dict[str, Any]:
    return {
        "name": implementation.name,
        "version": implementation.version,
        "functions": sorted(implementation.functions),
        "calls": dict(implementation.calls),
        "unsupported": sorted(implementation.unsupported),
        "float32": implementation.float32,
        "device": implementation.device,
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "id": check.id,
        "function": check.asked,
        "asserts": check.asserts,
        "source": check.source,
        "why": check.why,
        "choice": check.choice,
        "tolerance": check.tolerance,
        "dtype": str(check.dtype).removeprefix("torch."),
        "inputs": _plain(dict(check.inputs)),
        "expected": _plain(dict(check.expected)),
    }


def _results(check: Check, results: list[Result]) -> list[dict[str, Any]]:
    return [
        {
            "implementation": result.implementation,
            "status": result.status,
            "difference": _plain(result.difference),
            "came": _plain(result.came),
            "reason": result.reason,
        }
        for result in results
        if result.check is check
    ]


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinities: they become "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
