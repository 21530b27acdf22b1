"""The compiled extension: loaded once, and never the cause of a failed import."""

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

RECORD = Path(__file__).parent.parent / "_build.json"
"""Written by setup.py: the torch it was built against, or why nothing was built."""


@cache
def why_not() -> str | None:
    """Load the extension, which registers its ops; why it cannot be, or None."""
    record = _record()
    if record is None:
        return "not compiled; install with pip install --no-build-isolation ."
    if record["reason"]:
        return f"not compiled: {record['reason']}"
    # Checked before loading: another minor version's library may load and then crash.
    if _minor(record["torch"]) != _minor(torch.__version__):
        return f"compiled against torch {record['torch']}, running {torch.__version__}; install again"
    try:
        import_module("rlhf_core._C")
    except (ImportError, OSError) as error:
        return f"cannot be loaded: {' '.join(str(error).split())}"
    return None


def build_info() -> dict[str, object]:
    """How the extension was built; empty where it is not loaded.

    isas, isa in use, compiler, torch, pybind11, cuda (a version or "none"), arch_list (as in TORCH_CUDA_ARCH_LIST).
    """
    return {} if why_not() else dict(import_module("rlhf_core._C").build_info())


@cache
def cuda_why_not() -> str | None:
    """Why the CUDA part of the extension cannot be used here, or None."""
    if reason := why_not():
        return reason
    if build_info()["cuda"] == "none":
        cuda = (_record() or {}).get("cuda") or {}
        return f"compiled without CUDA: {cuda['reason']}" if cuda.get("reason") else "compiled without CUDA"
    return None if torch.cuda.is_available() else "needs a CUDA device"


def _record() -> dict[str, Any] | None:
    """What setup.py wrote down, or None."""
    try:
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
