"""What a plugin shares with everything else in its process: kept as it was while the plugin is tried."""

import io
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "num_threads": (torch.get_num_threads, torch.set_num_threads),
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    # the CPU by name would cost time at every call
    "default_device": (torch.get_default_device, lambda it: torch.set_default_device(None if it.type == "cpu" else it)),
}
"""What a plugin may change of torch for the whole process: how it is read, and put back."""


def settings_of_torch() -> dict[str, Any]:
    """As they are."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


def restore(settings: Mapping[str, Any]) -> None:
    """Put them back."""
    for name, value in settings.items():
        SETTINGS[name][1](value)


@contextmanager
def unharmed() -> Iterator[Path]:
    """An empty working directory, silence, fixed random numbers; afterwards all is as it was."""
    before, root = Path.cwd(), logging.getLogger()
    states = random.getstate(), np.random.get_state()
    level, handlers = root.level, root.handlers[:]
    settings = settings_of_torch()
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng(), redirect_stdout(io.StringIO()):
        try:
            seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries; what a plugin warns of is not what is asked
                yield Path(name)
        finally:
            os.chdir(before)
            random.setstate(states[0])
            np.random.set_state(states[1])
            root.setLevel(level)
            root.handlers[:] = handlers
            restore(settings)


def seed(number: int) -> None:
    """Seed all generators that a plugin may draw from without being handed one."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
