"""Plugins: found through entry points, loaded when chosen.

One entry-point group a kind (``rlhf.reward``, …). Looking is cheap: metadata only, nothing is imported. Loading
imports the one class that was asked for, and says in one line what is wrong with it.
"""

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_core import RLHF_API
from rlhf_core.errors import UserError
from rlhf_core.failure import flat, line_in

KINDS = ("policy", "reward", "algorithm", "data", "rollout", "evaluator", "tracker")
SEVERAL = ("evaluator", "tracker")
"""Kinds of which a run can have several at once: the config is a dict name → plugin."""


EXTENSIONS = (*KINDS, "benchmark")
"""All kinds that a package can register; a benchmark is no part of a run, so it is no config group."""


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """One registered plugin, as its distribution's metadata describe it."""

    kind: str
    name: str
    value: str
    """``module:Class``"""
    distribution: str
    version: str
    clashes: tuple[str, ...] = ()
    """other distributions that register the same name"""

    @property
    def module(self) -> str:
        """Dotted name of the module that holds the class."""
        return self.value.partition(":")[0].strip()

    @property
    def top(self) -> str:
        """The package, or bare module, that it lies in."""
        return _top(self.module)

    @property
    def attribute(self) -> str:
        """Name of the class in its module."""
        return self.value.partition(":")[2].partition("[")[0].strip()

    @property
    def file(self) -> Path | None:
        """The module's file, found without importing anything; None where there is none."""
        return module_file(self.module)

    @property
    def origin(self) -> str:
        """Distribution, version and file, for error messages."""
        return f"{self.distribution} {self.version}, {self.file or self.module}"


@cache
def available(kind: str) -> dict[str, PluginInfo]:
    """All plugins of ``kind`` by name, from metadata alone."""
    found: dict[str, list[PluginInfo]] = {}
    for entry in registered(f"rlhf.{kind}"):
        info = PluginInfo(kind, entry.name, entry.value, *_identity(entry.dist))
        found.setdefault(entry.name, []).append(info)
    return {name: _first_of(infos) for name, infos in sorted(found.items())}


def registered(group: str) -> list[EntryPoint]:
    """The entry points of one group, ordered by distribution."""
    return sorted(_everything().select(group=group), key=lambda entry: _identity(entry.dist))


def load(kind: str, name: str) -> type:
    """Import the class of one plugin.

    Returns:
        The plugin's dataclass.

    Raises:
        UserError: no such plugin, two distributions with this name, it cannot be imported, it is not a dataclass, or
            it asks for another plugin API.
    """
    options = available(kind)
    if name not in options:
        raise UserError(f"{kind}={name}: no such {kind}; available: {', '.join(options)}{did_you_mean(name, options)}")
    info = options[name]
    if info.clashes:
        owners = " and ".join((info.distribution, *info.clashes))
        raise UserError(f"{kind}={name}: {owners} both register this name; uninstall one of them")
    cls = _checked(info, _import(info))
    _loaded[cls] = info
    return cls


def loaded(cls: type) -> PluginInfo | None:
    """The plugin that ``cls`` is, in this process or in the one that sent a configuration here; None: it is none."""
    if cls not in _loaded:
        infos = (info for kind in KINDS for info in available(kind).values())
        for info in [info for info in infos if info.attribute == cls.__qualname__ and info.top == _top(cls.__module__)]:
            with suppress(UserError):
                load(info.kind, info.name)
    return _loaded.get(cls)


def provenance(choices: Mapping[str, str | None]) -> list[dict[str, str]]:
    """Where the chosen plugins come from, for ``plugins.json``.

    Args:
        choices: config group, with or without ``@package``, → name, or several names joined by commas.

    Returns:
        One dict a plugin: kind, name, distribution, version, file. Groups that are no kind, and presets, are left out.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for group, names in choices.items():
        kind = group.partition("@")[0]
        for name in (names or "").split(",") if kind in KINDS else ():
            info = available(kind).get(name)
            if info is not None:
                rows[kind, name] = {
                    "kind": kind,
                    "name": name,
                    "distribution": info.distribution,
                    "version": info.version,
                    "file": str(info.file or ""),
                }
    return [rows[key] for key in sorted(rows)]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``". Did you mean X?"`` for the nearest option, or nothing."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f". Did you mean {near[0]}?" if near else ""


def importable(top: str) -> bool:
    """Whether there is a module or package of this name (without dots); nothing is imported."""
    return top in sys.builtin_module_names or _spec(top) is not None


def package_folder(package: str) -> Path | None:
    """The folder of a package or of plain data inside one; nothing is imported."""
    return next((place for place in _places(package) if place.is_dir()), None)


@cache
def module_file(module: str) -> Path | None:
    """The source file of a module, without importing it or its parents."""
    for place in _places(module):
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _places(module: str) -> Iterator[Path]:
    """Where a module may lie. Only its first part goes through the import system: finding more imports parents."""
    top, *rest = module.split(".")
    spec = _spec(top)
    if spec is not None and spec.submodule_search_locations is not None:
        yield from (Path(location, *rest) for location in spec.submodule_search_locations)
    elif spec is not None and spec.origin and not rest:
        yield Path(spec.origin).with_suffix("")


def _top(module: str) -> str:
    return module.partition(".")[0]


@cache
def _spec(top: str) -> ModuleSpec | None:
    try:
        return find_spec(top)
    except (ImportError, ValueError):
        return None


@cache
def _everything() -> Any:
    return entry_points()  # reads every distribution's metadata: once is enough


def _import(info: PluginInfo) -> object:
    entry = EntryPoint(info.name, info.value, f"rlhf.{info.kind}")
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything at all
        cause = flat(error) or type(error).__name__
        raise UserError(
            f"{info.kind}={info.name}: cannot be imported ({info.origin}): "
            f"{type(error).__name__}: {cause}{_where(error, info)}; repair or uninstall {info.distribution}"
        ) from error


def _where(error: BaseException, info: PluginInfo) -> str:
    """``" (line 3)"``: the last line of the plugin's own file that the error passed through."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    line = line_in(info.file, error)
    return f" (line {line})" if line else ""


def _checked(info: PluginInfo, found: object) -> type:
    prefix = f"{info.kind}={info.name}: {info.value} ({info.origin})"
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise UserError(f"{prefix} is no dataclass; decorate the class with @dataclass")
    if "__dataclass_params__" not in vars(found) and vars(found).get("__annotations__"):
        raise UserError(f"{prefix} adds fields to a dataclass without being one; decorate it with @dataclass")
    api = getattr(found, "rlhf_api", None)
    if api != RLHF_API:
        asked = "states no rlhf_api" if api is None else f"asks for plugin API {api}"
        raise UserError(f"{prefix} {asked}, this rlhf has {RLHF_API}; install a release of it made for {RLHF_API}")
    return found


def _first_of(infos: list[PluginInfo]) -> PluginInfo:
    return dataclasses.replace(infos[0], clashes=tuple(info.distribution for info in infos[1:]))


@cache
def _identity(distribution: Distribution | None) -> tuple[str, str]:
    """Name and version; cached, for each look parses the whole METADATA file."""
    return (distribution.name, distribution.version) if distribution else ("unknown", "")


_loaded: dict[type, PluginInfo] = {}
