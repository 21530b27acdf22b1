"""The processes of one run: each holds the whole model and takes a part of every batch.

``torchrun`` starts them; one process started by hand is a world of 1, for which nothing here costs anything. All ranks
run the same program on the same data with the same random numbers, so they agree on every batch without talking; they
exchange gradients, metrics and sampled responses. Rank 0 alone writes and prints.
"""

import atexit
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from .errors import UserError

T = TypeVar("T")


def count() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def local(device: torch.device) -> torch.device:
    """The device of this process where a machine's processes each have a GPU; ``device`` itself where one is named."""
    if device.type != "cuda" or device.index is not None or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join(device: torch.device) -> None:
    """Meet the other processes that ``torchrun`` started, if it did."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)


def gather(value: T) -> list[T]:
    """What each rank gives, in the order of ranks; anything that can be pickled, tensors on the CPU."""
    if count() == 1:
        return [value]
    found: list[T] = [value] * count()
    with _talking():
        dist.all_gather_object(found, value)
    return found


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL alike
        raise UserError(f"torchrun: process {rank()} lost another, whose own message says why it stopped") from error


def agree(value: object, what: str) -> None:
    """Refuse ranks that do not hold the same ``value``: they would train on different things without a word."""
    values = gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"torchrun: processes 0 and {number} have different {what}: {values[0]!r} and {other!r}")


def checksum(module: nn.Module) -> int:
    """A number that tells parameters and buffers apart."""
    found = 0
    for tensor in module.state_dict().values():
        found = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), found)
    return found


def deal(items: Sequence[T]) -> Sequence[T]:
    """This rank's share of a minibatch's microbatches: every so many; all hold about as many tokens."""
    return items[rank() :: count()]


def share(keys: Sequence[object]) -> range:
    """This rank's part of a sequence: contiguous, and equal neighbours stay together."""
    starts = [place for place, key in enumerate(keys) if place == 0 or key != keys[place - 1]] + [len(keys)]
    first, last = (next(at for at in starts if at * count() >= len(keys) * number) for number in (rank(), rank() + 1))
    return range(first, last)


def sum_gradients(module: nn.Module) -> None:
    """Add up the gradients of all ranks; losses are divided by denominators of the whole minibatch already."""
    if count() == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    with _talking():
        dist.all_reduce(there)
        for parameter, somewhere in zip(parameters, there.tolist(), strict=True):
            if somewhere:  # a parameter without gradient anywhere keeps none, and the optimiser leaves it alone
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = gradient.contiguous()
                dist.all_reduce(parameter.grad)


@contextmanager
def place(folder: Path) -> Iterator[Path]:
    """The run's folder for rank 0. Others are silent and get one that is thrown away, with the run's checkpoints in it.

    So whatever plugins write and print is written and printed once.
    """
    if rank() == 0:
        yield folder
        return
    with TemporaryDirectory() as scratch, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        own = Path(scratch) / folder.name
        own.mkdir()
        (own / "checkpoints").symlink_to((folder / "checkpoints").absolute())
        logging.disable(logging.WARNING)
        try:
            yield own
        finally:
            logging.disable(logging.NOTSET)
