"""``rlhf doctor``: what this machine can do, and what is broken. It tries things instead of guessing."""

import json
import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_core import plugins
from rlhf_core.errors import UserError
from rlhf_core.failure import flat, told
from rlhf_core.fetch import cache_folder

PACKAGES = ("rlhf-core", "torch", "transformers", "tokenizers", "peft", "hydra-core", "omegaconf", "triton", "numpy")


def main(argv: list[str]) -> int:
    """``rlhf doctor [--json]``; the exit code is 1 where a plugin or torch cannot be used."""
    if argv not in ([], ["--json"]):
        raise UserError(f"doctor: takes --json only, got {' '.join(argv)}")
    facts = examine()
    print(json.dumps(facts, indent=1) if argv else "\n".join(_page(facts)))
    return 1 if facts["broken_plugins"] or "error" in facts["torch"] else 0


def examine() -> dict[str, Any]:
    """Everything the doctor looks at."""
    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "torch": _attempt(_torch),
        "extension": _attempt(_extension),
        "kernels": _attempt(lambda: {"rows": import_module("rlhf_core.kernels").status()}),
        "plugins": {kind: sorted(plugins.available(kind)) for kind in plugins.KINDS},
        "broken_plugins": broken_plugins(),
        "cache": _cache(),
    }


def broken_plugins() -> dict[str, str]:
    """``kind=name`` → why, for every plugin that cannot be used here. Imports them all."""
    broken = {}
    for kind in plugins.KINDS:
        for name in plugins.available(kind):
            try:
                _as_config(plugins.load(kind, name))
            except UserError as error:
                broken[f"{kind}={name}"] = flat(error).removeprefix(f"{kind}={name}: ")
            except Exception as error:  # whatever OmegaConf says about a stranger's fields
                broken[f"{kind}={name}"] = f"its fields cannot be a configuration: {flat(error)}"
    return broken


def _as_config(cls: type) -> None:
    from omegaconf import OmegaConf  # slow to import

    OmegaConf.structured(cls)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _attempt(look: Any) -> dict[str, Any]:
    try:
        return dict(look())
    except Exception as error:  # a half-installed library may raise anything; saying so is the point
        return {"error": told(error)}


def _torch() -> dict[str, Any]:
    import torch  # 2 s to import, and the doctor must live where it fails

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cuda_build": torch.version.cuda,
        "device": gpus or ["cpu"],
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _extension() -> dict[str, Any]:
    extension = import_module("rlhf_core.kernels.extension")
    problem = extension.why_not()
    return {"problem": problem} if problem else dict(extension.build_info())


def _cache() -> dict[str, Any]:
    folder = cache_folder()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {"folder": str(folder), "files": {file.name: _megabytes(file) for file in files}}


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 1)


def _page(facts: dict[str, Any]) -> list[str]:
    lines = [f"python      {facts['python']}"]
    lines += [f"{name:11} {number or 'not installed'}" for name, number in facts["versions"].items()]
    for part in ("torch", "extension"):
        lines += ["", part, *(f"  {name:11} {_shown(value)}" for name, value in facts[part].items())]
    lines += ["", "kernels"]
    if "error" in facts["kernels"]:
        lines.append(f"  {facts['kernels']['error']}")
    lines += [f"  {line}" for line in _kernel_lines(facts["kernels"].get("rows", []))]
    lines += ["", "plugins", *(f"  {kind:11} {', '.join(names)}" for kind, names in facts["plugins"].items())]
    lines += [f"  BROKEN {choice}: {why}" for choice, why in facts["broken_plugins"].items()]
    lines += ["", f"cache       {facts['cache']['folder']}"]
    lines += [f"  {name} ({size} MB)" for name, size in facts["cache"]["files"].items()]
    if not facts["cache"]["files"]:
        lines.append("  empty: the first run fetches the data it needs")
    return lines


def _kernel_lines(rows: list[dict[str, Any]]) -> list[str]:
    """One line an op with the backends that are here; then why others are not, and what to know of them, once each."""
    here: dict[str, list[str]] = {row["op"]: [] for row in rows}
    said: dict[str, list[str]] = {}
    for row in rows:
        if row["available"]:
            here[row["op"]].append(row["backend"])
        for text in filter(None, (row["reason"], row["note"])):
            said.setdefault(f"{row['backend']}: {text}", []).append(row["op"])
    lines = [f"{op:20} {', '.join(backends)}" for op, backends in here.items()]
    return lines + [f"{text}  [{', '.join(ops)}]" for text, ops in said.items()]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
