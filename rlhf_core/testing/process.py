"""What a plugin shares with everything else in its process: kept as it was while the plugin is tried."""

import io
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
)
"""What a plugin may change for the whole process: how it is read, and put back."""


@contextmanager
def unharmed() -> Iterator[Path]:
    """An empty working directory, silence, fixed random numbers; afterwards all is as it was."""
    before, root = Path.cwd(), logging.getLogger()
    states = random.getstate(), np.random.get_state()
    level, handlers = root.level, root.handlers[:]
    settings = [(put, get()) for get, put in SETTINGS]
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
            for put, value in settings:
                put(value)


def seed(number: int) -> None:
    """Seed all generators that a plugin may draw from without being handed one."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
