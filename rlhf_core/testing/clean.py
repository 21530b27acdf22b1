"""A clean process in which plugins are listed, imported and unpickled, and what that did."""

import base64
import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import plugins
from ..contracts import CONTRACTS
from . import clean_process

SECONDS = 300
"""after which a process that does not end is given up"""


@dataclass(frozen=True)
class Listing:
    """What ``rlhf list`` and ``rlhf info`` say of a class; ``imported`` is what of weight they had to import."""

    problem: str = ""
    api: int | None = None
    doc: str = ""
    fields: tuple[str, ...] = ()
    imported: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a clean process saw of one plugin.

    Attributes:
        listing: before anything was imported.
        error: why its module cannot be imported; empty where it can.
        output: what importing printed.
        changes: what of the process's state importing changed, beside what imported libraries change.
        lost: why the plugin cannot be pickled here or unpickled there.
        opened: files that were opened while the plugin was made.
    """

    listing: Listing = Listing()
    error: str = ""
    output: str = ""
    changes: tuple[str, ...] = ()
    lost: str = ""
    opened: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A plugin as another process gets to know it."""

    module: str
    listed: tuple[str, str]
    """module and name that its entry point has, else those of its class"""
    file: str
    settings: str
    """those of its class, as people read them: copies of a plugin have the same"""
    pickled: str = field(default="", compare=False)
    lost: str = field(default="", compare=False)
    """why it cannot be pickled"""

    @staticmethod
    def of(plugin: Any) -> "Asked":
        """What to ask of a plugin that was not set up."""
        cls = type(plugin)
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
        try:
            pickled, lost = base64.b64encode(pickle.dumps(plugin)).decode(), ""
        except Exception as error:  # whatever __reduce__ of a field raises
            pickled, lost = "", f"{type(error).__name__}: {error}"
        settings = re.sub("0x[0-9a-f]+", "", repr(plugin))
        return Asked(cls.__module__, registered_as(cls), file, settings, pickled, lost)

    @property
    def root(self) -> str:
        """The folder from which the module's name leads to its file; empty where none does."""
        if not self.file:
            return ""
        path = Path(self.file).with_suffix("")
        path = path.parent if path.name == "__init__" else path
        parts = self.module.split(".")
        return str(Path(*path.parts[: -len(parts)])) if path.parts[-len(parts) :] == tuple(parts) else ""


def report_on(plugin: Any) -> Report:
    """What a clean process sees of a plugin; asked once."""
    asked = Asked.of(plugin)
    prime([plugin])
    found = _known[asked]
    return replace(found, lost=asked.lost or found.lost)


def prime(plugins: Iterable[Any]) -> None:
    """Ask of many plugins at once: one process then imports torch for all."""
    new = [asked for asked in dict.fromkeys(map(Asked.of, plugins)) if asked not in _known]
    there = [asked for asked in new if asked.module != "__main__"]
    _known.update({asked: Report(error="it is defined in __main__, which no other process has") for asked in new})
    if there:
        _known.update(zip(there, _ask(there), strict=True))


def registered_as(cls: type) -> tuple[str, str]:
    """Module and name in the entry point of a class that is loaded and registered, else its own."""
    for kind in CONTRACTS:
        for info in plugins.available(kind).values():
            if getattr(sys.modules.get(info.module), info.attribute, None) is cls:
                return info.module, info.attribute
    return cls.__module__, cls.__qualname__


def _ask(asked: list[Asked]) -> list[Report]:
    roots = [one.root for one in asked if one.root and one.root not in sys.path]
    request = {
        "path": [*sys.path, *dict.fromkeys(roots)],
        "files": {one.module: one.file for one in asked if one.file and not one.root},
        "plugins": [{"module": one.module, "listed": one.listed, "pickled": one.pickled} for one in asked],
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-P", clean_process.__file__],
                input=json.dumps(request), capture_output=True, text=True, cwd=folder, timeout=SECONDS,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Report(error=f"importing it did not end within {SECONDS} seconds")] * len(asked)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return [Report(error=f"a clean process ended with exit code {done.returncode}: {last}")] * len(asked)
    found = json.loads(done.stdout.strip().rpartition("\n")[2])
    return [_report(row) for row in found]


def _report(row: dict[str, Any]) -> Report:
    listed = row["listing"]
    listing = Listing(
        listed["problem"], listed["api"], listed["doc"], tuple(listed["fields"]), tuple(listed["imported"])
    )
    changes, opened = tuple(row["changes"]), tuple(row["opened"])
    return Report(listing, row["error"], row["output"], changes, row["lost"], opened)


_known: dict[Asked, Report] = {}
