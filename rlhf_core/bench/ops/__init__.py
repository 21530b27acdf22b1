"""The ops that ``rlhf bench`` knows: one file each, found by being here."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ..operation import Operation

USUAL = ("ci", "rlhf-7b", "grpo-long", "dpo", "ranking", "attention", "logprobs", "gpu")
"""The order in which presets are shown."""


@cache
def operations() -> dict[str, Operation]:
    """All ops by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {module.OPERATION.name: module.OPERATION for module in modules}


@cache
def presets() -> tuple[str, ...]:
    """The presets that some op has shapes for."""
    there = dict.fromkeys(preset for operation in operations().values() for preset in operation.presets)
    return (*(preset for preset in USUAL if preset in there), *(preset for preset in there if preset not in USUAL))
