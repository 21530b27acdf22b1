"""YAML presets: the core's ``conf/`` and the folders that distributions register under ``rlhf.conf``."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rlhf_core.plugins import KINDS, available, package_folder, registered

GROUP = "rlhf.conf"


def conf_folder() -> Path:
    """The core's ``conf/``: installed as ``rlhf_core.conf``, or beside the package in a source tree."""
    spec = find_spec("rlhf_core.conf")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parent.parent / "conf"


@cache
def folders() -> tuple[tuple[str, Path], ...]:
    """``(distribution, folder)`` of each presets folder that a distribution registers; nothing is imported."""
    found = ((entry, package_folder(entry.value)) for entry in registered(GROUP))
    return tuple((entry.dist.name if entry.dist else "unknown", folder) for entry, folder in found if folder)


def options(group: str) -> list[str]:
    """What can be chosen for a config group: plugins and presets, by name."""
    names = set(available(group)) if group in KINDS else set()
    for folder in (conf_folder(), *(folder for _, folder in folders())):
        names.update(file.stem for file in (folder / group).glob("*.yaml"))
    return sorted(names)


def using(kind: str, name: str) -> list[tuple[str, Path]]:
    """``(override, file)`` of the presets whose defaults choose this plugin, e.g. ``experiment=loud``."""
    chosen = re.compile(rf"\b{kind}(@\S+)?\s*[:=]\s*(\[.*)?\b{re.escape(name)}\b")
    own = re.compile(rf"defaults:[^\S\n]*(\[|\n\s*-)\s*{re.escape(name)}\b")
    found = []
    for folder in (conf_folder(), *(folder for _, folder in folders())):
        for file in sorted(folder.glob("*/*.yaml")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if chosen.search(text) or (file.parent.name == kind and own.search(text)):
                found.append((f"{file.parent.name}={file.stem}", file))
    return found
