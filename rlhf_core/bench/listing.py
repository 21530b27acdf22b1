"""``rlhf bench list``: the ops, who computes them here, who does not and why, and the presets' shapes."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .arguments import one_of, pairs
from .implementations import Implementation, implementations
from .machine import device_named
from .ops import operations, presets
from .run import DTYPES


def main(words: Sequence[str]) -> int:
    """``rlhf bench list [device=…] [dtype=…] [--json]``."""
    values = pairs("rlhf bench list", [word for word in words if word != "--json"], ("device", "dtype"))
    device = device_named(values.get("device", "auto"))
    dtype = DTYPES[one_of(values, "dtype", tuple(DTYPES), "float32")]
    found = examine(device, dtype)
    print(json.dumps(found, indent=1) if "--json" in words else "\n".join(_page(found)))
    return 0


def examine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Ops with their implementations, and presets, as plain data."""
    there = list(implementations().values())
    ops = {name: _reasons(name, there, device, dtype) for name in operations()}
    others = {
        one.name: {"kind": one.kind, "reason": one.broken or _elsewhere(one, device, dtype)}
        for one in there
        if one.broken or not set(one.ops) & set(ops)
    }
    shapes = {
        preset: {name: list(op.presets[preset]) for name, op in operations().items() if preset in op.presets}
        for preset in presets()
    }
    return {"device": str(device), "ops": ops, "others": others, "presets": shapes}


def _reasons(
    op: str, there: Sequence[Implementation], device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, str]]:
    return {
        one.name: {"kind": one.kind, "reason": one.why_not(op, device, dtype) or ""} for one in there if op in one.ops
    }


def _elsewhere(one: Implementation, device: torch.device, dtype: torch.dtype) -> str:
    """Of one that covers only ops that have no file here yet."""
    reasons = {reason for op in one.ops if (reason := one.why_not(op, device, dtype))}
    return "; ".join([*sorted(reasons), f"covers {', '.join(one.ops) or 'nothing'}"])


def _page(found: dict[str, Any]) -> Iterator[str]:
    yield f"ops on {found['device']}, and who computes them here"
    for name, entries in found["ops"].items():
        form = "x".join(f"<{dim}>" for dim in operations()[name].dims)
        yield f"\n{name}  shape={form}"
        yield f"  here         {', '.join(one for one, entry in entries.items() if not entry['reason']) or 'nobody'}"
        yield from (f"  {one:12} {entry['reason']}" for one, entry in entries.items() if entry["reason"])
    if found["others"]:
        yield "\nothers"
        yield from (f"  {name:12} {entry['reason']}" for name, entry in found["others"].items())
    yield "\npresets"
    for preset, shapes in found["presets"].items():
        for place, (name, listed) in enumerate(shapes.items()):
            yield f"  {preset if not place else '':12} {name:16} {', '.join(listed)}"
    yield "\nrun: rlhf bench run op=… preset=…; what the columns mean: rlhf bench --help"
