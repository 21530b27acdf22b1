"""Runs checks: each on a copy of the plugin, in a world of its own, leaving this process as it was."""

import io
import logging
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..failure import flat
from .check import Check, CheckFailed, NotApplicable, Outcome
from .checks import checks_of, kind_of
from .world import World


def run_checks(plugin: Any, kind: str | None = None, device: str = "cpu") -> Iterator[Outcome]:
    """All checks of a plugin's kind, one after the other.

    Args:
        plugin: an instance, not set up.
        kind: which kind of plugin it is; None: as it is registered, else by its methods.
        device: where models are.

    Raises:
        UserError: nothing tells its kind.
    """
    kind = kind or kind_of(plugin)
    for check in checks_of(kind):
        yield attempt(check, plugin, kind, device)


def attempt(check: Check, plugin: Any, kind: str, device: str = "cpu") -> Outcome:
    """What comes of one check of a plugin of this kind; whatever it raises is a failure of the check."""
    by_design = getattr(plugin, "rlhf_checks", {})
    if check.name in by_design:
        return Outcome(check, "skipped", reason=f"by design, {by_design[check.name]}")
    try:
        with unharmed() as folder:
            check.body(deepcopy(plugin), World(folder, kind, device))
    except NotApplicable as reason:
        return Outcome(check, "skipped", reason=str(reason))
    except CheckFailed as found:
        return Outcome(check, "failed", found.expected or check.expected, found.came, found.cure or check.cure)
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything at all
        came = f"{type(error).__name__}: {flat(error)}{_place(error, plugin)}"
        return Outcome(check, "failed", check.expected, came, check.cure)
    return Outcome(check, "passed")


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
        os.chdir(name)
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


def _place(error: BaseException, plugin: Any) -> str:
    """``" (my_reward.py, line 12)"``: the last line of the plugin's own file that the error passed through."""
    file = getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
