"""What a run ran on: versions, device, and which kernel backend computed each op."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from . import kernels, precision

if TYPE_CHECKING:
    from .run import Run

PACKAGES = ("rlhf-core", "torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "peft", "numpy", "triton")


def describe(run: "Run", model: torch.nn.Module | None = None) -> dict[str, Any]:
    """The content of env.json; ``model`` is what was trained."""
    device = run.device
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision.describe(model),
        "versions": {name: installed(name) for name in PACKAGES},
        "kernels": {"used": kernels.used(), "available": kernels.status()},
    }


def installed(package: str) -> str | None:
    """The installed version of a package, None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
