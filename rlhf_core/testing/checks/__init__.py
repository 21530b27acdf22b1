"""The checks, one file a kind; those of ``plugin.py`` are asked of every kind."""

from importlib import import_module
from typing import Any

from ... import plugins
from ...contracts import CONTRACTS, missing, needed
from ...errors import UserError, one_of
from ..check import Check


def checks_of(kind: str) -> list[Check]:
    """All checks of one kind of plugin.

    Raises:
        UserError: there is no such kind.
    """
    one_of("kind", kind, CONTRACTS)
    common: list[Check] = import_module(".plugin", __name__).CHECKS
    own: list[Check] = import_module(f".{kind}", __name__).CHECKS
    return [*common, *own]


def kind_of(plugin: Any) -> str:
    """The kind that a plugin is registered as, else the one of whose contract it has the most.

    Raises:
        UserError: two are as near, and neither is complete.
    """
    value = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    for kind in CONTRACTS:
        if any(info.value == value for info in plugins.available(kind).values()):
            return kind
    ranked = sorted(CONTRACTS, key=lambda kind: _closeness(kind, plugin), reverse=True)
    first, second = ranked[:2]
    if missing(first, plugin) and _closeness(first, plugin) == _closeness(second, plugin):
        wanted = f"a {first} needs {', '.join(needed(first))}, a {second} {', '.join(needed(second))}"
        raise UserError(f'{value}: cannot tell its kind ({wanted}, …); say it, as kind="{first}"')
    return first


def _closeness(kind: str, plugin: Any) -> tuple[int, int]:
    """How much of a kind's contract a plugin has, and how little it lacks."""
    lacking = len(missing(kind, plugin))
    return len(needed(kind)) - lacking, -lacking
