"""A check as text that can be pasted: inputs as Python, what is expected, and why."""

from collections.abc import Iterator
from typing import Any

from .check import Check, Prompts


def describe(check: Check) -> Iterator[str]:
    """Everything about a check, a line each."""
    yield f"{check.id}  [{check.source}]"
    yield f"  asserts   {check.asserts}"
    yield f"  why       {check.why}"
    if check.choice:
        yield f"  choice    {check.choice}"
    yield f"  agrees    within {check.tolerance:g}, relative where more than 1 is expected"
    yield f"  call      {check.asked}({', '.join(check.inputs)})"
    yield from (f"    {line}" for line in inputs(check))
    yield "  expected"
    yield from (f"    {name} = {numbers(value)}" for name, value in check.expected.items())


def inputs(check: Check) -> Iterator[str]:
    """Assignments that make the arguments; they want ``torch`` and, for some, ``from math import nan, inf``."""
    for name, value in check.inputs.items():
        yield f"{name} = {source(value, str(check.dtype))}"


def source(value: Any, dtype: str) -> str:
    """Python that makes the tensor."""
    if isinstance(value, Prompts):
        return f"[{', '.join(source(item, dtype) for item in value)}]"
    if not isinstance(value, list):
        return repr(value)
    first: Any = value
    while isinstance(first, list):
        first = first[0]
    kind = "" if type(first) in (bool, int) else f", dtype={dtype}"
    return f"torch.tensor({value}{kind})"


def numbers(value: Any) -> str:
    """To six digits; ``·`` where nothing is looked at."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(numbers, value))}]"
    return "·" if value is None else f"{value + 0.0:.6g}"
