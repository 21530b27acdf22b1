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
    """The kind that a plugin is registered as, else the one whose contract it has.

    Raises:
        UserError: it has none.
    """
    value = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    for kind in CONTRACTS:
        if any(info.value == value for info in plugins.available(kind).values()):
            return kind
    fitting = [kind for kind in CONTRACTS if not missing(kind, plugin)]
    if not fitting:
        nearest = min(CONTRACTS, key=lambda kind: len(missing(kind, plugin)) / len(needed(kind)))
        wanted = f"the nearest, {nearest}, needs {', '.join(needed(nearest))}"
        raise UserError(f'{value}: cannot tell its kind ({wanted}); say it, as kind="{nearest}"')
    return max(fitting, key=lambda kind: len(needed(kind)))  # an algorithm may have all that an evaluator has
