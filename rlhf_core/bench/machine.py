"""Where a run was measured: device, processor, driver, versions, commit."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..environment import installed
from ..errors import UserError
from ..failure import flat

PACKAGES = ("torch", "triton", "numpy", "torchrl", "trl", "liger-kernel", "flash-attn")


def describe(device: torch.device) -> dict[str, Any]:
    """What goes into a results file of the machine."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "device_type": device.type,
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "driver": driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"rlhf_core": __version__} | {name: installed(name) for name in PACKAGES},
        "commit": commit(),
    }


def device_named(name: str) -> torch.device:
    """The device of ``device=``; ``auto`` is a GPU where there is one."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: cannot be used here ({flat(str(error).splitlines()[0])})") from error
    return device


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def driver() -> str | None:
    """The NVIDIA driver's version."""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit() -> str | None:
    """The commit of the source tree this package lies in, with ``-dirty`` where files differ; None outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    return _output("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None
