"""Implementations by name: ours, the peers that an adapter knows, and anybody's as ``module:attribute``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import packages_distributions, version
from typing import Any

from ..errors import UserError
from ..failure import flat, told
from ..plugins import did_you_mean
from .adapters import ours, torchrl, trl
from .signatures import SIGNATURES, Implementation

ADAPTERS = {variant: adapter for adapter in (ours, trl, torchrl) for variant in adapter.VARIANTS}


def default() -> list[Implementation]:
    """Everything that runs here."""
    return [found for name in ADAPTERS if isinstance(found := _adapted(name), Implementation)]


def find(name: str) -> Implementation:
    """What is called so.

    Raises:
        UserError: there is no such implementation, or it cannot be used here.
    """
    if ":" in name:
        return _foreign(name)
    if name not in ADAPTERS:
        known, near = ", ".join(ADAPTERS), did_you_mean(name, ADAPTERS)
        raise UserError(
            f"--impl {name}: no such implementation; there are {known}, and yours as module:attribute{near}"
        )
    found = _adapted(name)
    if isinstance(found, str):
        raise UserError(f"--impl {name}: {found}")
    return found


def _adapted(name: str) -> Implementation | str:
    """The implementation, or why it cannot be used."""
    try:
        found: Implementation = ADAPTERS[name].implementation(name)
    except NotImplementedError as error:
        return flat(error)
    return found


def _foreign(name: str) -> Implementation:
    module, _, attribute = name.partition(":")
    found = _imported(name, module)
    for part in filter(None, attribute.split(".")):
        if not hasattr(found, part):
            near = did_you_mean(part, vars(found) if hasattr(found, "__dict__") else ())
            raise UserError(f"--impl {name}: {module} has no {attribute}{near}")
        found = getattr(found, part)
    functions = {function: call for function in SIGNATURES if callable(call := getattr(found, function, None))}
    if not functions:
        raise UserError(f"--impl {name}: offers none of {', '.join(SIGNATURES)}")
    return Implementation(
        name, functions, _version(module), unsupported=frozenset(getattr(found, "unsupported", ())),
        float32=bool(getattr(found, "float32", False)), device=str(getattr(found, "device", "cpu")),
    )  # fmt: skip


def _imported(name: str, module: str) -> Any:
    try:
        with _here():
            return import_module(module)
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything at all
        raise UserError(f"--impl {name}: cannot be imported: {told(error)}") from error


@contextmanager
def _here() -> Iterator[None]:
    """The current directory first, as ``python -m`` has it."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _version(module: str) -> str:
    distributions = packages_distributions().get(module.partition(".")[0], ())
    return version(distributions[0]) if distributions else ""
