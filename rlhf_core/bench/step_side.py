"""One side of ``rlhf bench step peer=…`` in a process of its own, which takes a step when it is told to.

Nothing is shared: threads, memory and what libraries keep by the process are each side's own, as in use.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from huggingface_hub import constants
from transformers.utils import logging

from ..errors import UserError
from ..failure import flat
from .step_world import DistinctWords, World, now


@dataclass(frozen=True)
class Setting:
    """Which side, and what the work leaves open; ``step_<side>.py`` runs it."""

    side: str  # ours, trl
    precision: str
    accumulate: int = 1  # parts of a batch, for a side that is told how many

    @property
    def name(self) -> str:
        """For people."""
        return self.precision + (f", {self.accumulate} parts" if self.accumulate > 1 else "")


@dataclass(frozen=True)
class Job:
    """What all sides do, the warm-up among the steps."""

    world: World
    folder: Path  # with the world's files
    device: torch.device
    threads: int
    steps: int


class Turns:
    """The side's end: it calls ``begin`` and ``end`` around each step, and ``finish``.

    What comes after a step until the next begins is done before the step is reported, so that it is in no one's time.
    """

    def __init__(self, connection: Connection, job: Job, facts: Callable[[], dict[str, Any]] = dict) -> None:
        """Not yet at the first step; ``facts`` are reported with each."""
        self.connection, self.device, self.facts = connection, job.device, facts
        self.work = DistinctWords()
        self.seconds = 0.0

    def begin(self) -> None:
        """Report, wait, and start the clock."""
        self.finish()
        self.connection.recv()
        self.start = now(self.device)

    def end(self) -> None:
        """Stop the clock."""
        self.seconds = now(self.device) - self.start

    def finish(self) -> None:
        """Report the last step."""
        self.connection.send({"seconds": self.seconds, "lengths": self.work.lengths, "facts": self.facts()})
        self.work.lengths = []


class Side:
    """The other end.

    Attributes:
        step_ms: what the steps took.
        lengths: tokens of the responses they sampled.
        facts: what the side says of itself.
    """

    def __init__(self, setting: Setting, job: Job) -> None:
        """Start the process, and wait until it could take a step."""
        self.setting = setting
        self.step_ms: list[float] = []
        self.lengths: list[int] = []
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setting, job), daemon=True)
        self.process.start()
        theirs.close()
        self.facts = self._answer()["facts"]

    def step(self) -> None:
        """Have a step taken."""
        self.connection.send("step")
        answer = self._answer()
        self.step_ms.append(1e3 * answer["seconds"])
        self.lengths += answer["lengths"]
        self.facts = answer["facts"]

    def forget(self) -> None:
        """What came so far was a warm-up."""
        self.step_ms, self.lengths = [], []

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()

    def _answer(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.connection.recv()
        except EOFError:
            answer = {"error": "its process has died"}
        if "error" in answer:
            raise UserError(f"{self.setting.side} ({self.setting.name}): {answer['error']}")
        return answer


def serve(connection: Connection, setting: Setting, job: Job) -> None:
    """Run a side until its steps are done, or nobody asks any more."""
    torch.set_num_threads(job.threads)
    try:
        with quiet():
            import_module(f"{__package__}.step_{setting.side}").run(connection, setting, job)
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:  # for the one who asks, in a line; a library may raise anything
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        connection.send({"error": kind + flat(str(error))})


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, logs and bars of libraries, and nothing asked of the network."""
    level, offline = logging.get_verbosity(), constants.HF_HUB_OFFLINE
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # for good, as attention.py does
    constants.HF_HUB_OFFLINE = True
    try:
        with catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        constants.HF_HUB_OFFLINE = offline
