"""Checkpoints: written under a temporary name, flushed, renamed; what is there is whole."""

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import ranks
from .errors import UserError

FOLDER = "checkpoints"


def save_checkpoint(run_folder: Path, step: int, module: nn.Module, state: dict[str, Any], keep: int) -> Path:
    """Save the trained parameters and buffers of ``module``, ``state`` and the random generators of all processes.

    Args:
        run_folder: the run; the checkpoint is ``checkpoints/step_000100``.
        step: steps done.
        module: its trained parameters and its buffers are saved as safetensors.
        state: tensors, numbers, strings, and lists and dicts of them.
        keep: how many of the newest checkpoints stay.
    """
    final = run_folder / FOLDER / f"step_{step:06d}"
    random, *others = ranks.gather(random_state())
    if ranks.rank():
        return final
    temporary = final.with_name(final.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with naming_a_full_disk(temporary):
            save_file(trained_tensors(module), temporary / "model.safetensors")
            torch.save({"step": step, "random": random, "others": others, **state}, temporary / "state.pt")
            hashes = {file.name: digest(file) for file in sorted(temporary.iterdir())}
            (temporary / "manifest.json").write_text(json.dumps(hashes, indent=1))
            for file in temporary.iterdir():
                flush(file)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets its space back; older checkpoints are untouched
        raise
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    flush(final.parent)
    for old in checkpoints(run_folder)[: -max(keep, 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path, module: nn.Module) -> dict[str, Any]:
    """Put the saved parameters into ``module``, restore the random generators, return the saved state."""
    check(folder)
    tensors = load_file(folder / "model.safetensors")
    expected = trained_tensors(module)
    if tensors.keys() != expected.keys() or any(tensors[name].shape != expected[name].shape for name in tensors):
        odd = sorted(tensors.keys() ^ expected.keys()) or [n for n in tensors if tensors[n].shape != expected[n].shape]
        raise UserError(
            f"resume: {folder} was written by another model (first difference: {odd[0]}); "
            "resume with the settings the run was started with"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    generators = [state.pop("random"), *state.pop("others", ())]
    restore_random(generators[ranks.rank() % len(generators)])
    return state


def checkpoints(run_folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (run_folder / FOLDER).glob("step_*") if path.suffix != ".partial")


def check(folder: Path) -> None:
    """Refuse a checkpoint whose files are not what was written."""
    older = [path.name for path in checkpoints(folder.parent.parent) if path.name < folder.name]
    remedy = f"delete that folder to go on from {older[-1]}" if older else "delete that folder to start over"
    try:
        hashes = json.loads((folder / "manifest.json").read_text())
        bad = [name for name, expected in hashes.items() if digest(folder / name) != expected]
    except (OSError, ValueError) as error:
        raise UserError(f"resume: checkpoint {folder} is corrupt ({error}); {remedy}") from error
    if bad:
        raise UserError(f"resume: checkpoint {folder} is corrupt ({bad[0]} is not what was written); {remedy}")


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Say so where torch or safetensors failed because the disk is full; neither does."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(folder).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers by name; a tensor shared under two names once."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad] + list(module.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def random_state() -> dict[str, Any]:
    """The states of the python, numpy and torch generators, as what ``torch.load(weights_only=True)`` reads."""
    kind, gauss_keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(gauss_keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all() if ranks.count() == 1 else [torch.cuda.get_rng_state()]
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Put the generators back."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and ranks.count() == 1:
        torch.cuda.set_rng_state_all(state["cuda"])
    elif "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"][0])


def digest(file: Path) -> str:
    """The file's sha256."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Make sure that what was written is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
