"""Repetitions, interleaved.

Every implementation gets one repetition a round, so that slow drifts of the machine (heat, neighbours) meet all alike;
each round has another random order, for what ran before leaves threads asleep or awake, and caches full of its own.
Each repetition takes another case of a small pool, and no two in a row the same one.

CPU: ``time.perf_counter_ns`` around the call. GPU: CUDA events around it, behind a write of 256 MiB that empties the
L2 cache and lets the host run ahead: what is measured is the device's time, unless the host is slower than that.

A copy of as many bytes as the op has to move at least takes part as one more implementation, over a pool of as many
buffers: the roof is measured under the conditions that it is the roof of.

The garbage collector is off meanwhile. What a call returns is freed after the clock has stopped.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

FLUSH_BYTES = 256 * 2**20
LEAST = 3
"""repetitions, however long they take"""


@dataclass(frozen=True)
class Budget:
    """How long an implementation is measured: to the first of the two."""

    repetitions: int
    seconds: float

    def spent(self, times: Sequence[float]) -> bool:
        """Whether these times (ms) are enough."""
        return len(times) >= self.repetitions or (len(times) >= LEAST and sum(times) >= 1e3 * self.seconds)


class Clock:
    """Milliseconds of a call on a CPU."""

    def time(self, call: Callable[[], object]) -> float:
        """Call once."""
        start = time.perf_counter_ns()
        result = call()
        taken = time.perf_counter_ns() - start
        del result
        return taken / 1e6


class DeviceClock(Clock):
    """Milliseconds of a call on a GPU."""

    def __init__(self, device: torch.device) -> None:
        """Reserve what is written to empty the cache."""
        self.device = device
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def time(self, call: Callable[[], object]) -> float:
        """Call once."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.flush.zero_()
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end))


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return DeviceClock(device) if device.type == "cuda" else Clock()


class Timed(Protocol):
    """What takes part."""

    def repetition(self, mode: str, clock: Clock) -> float:
        """Milliseconds of one repetition of ``fwd``, ``bwd`` or ``full``."""


def interleaved(
    pools: Mapping[str, Sequence[Timed]], mode: str, clock: Clock, budget: Budget
) -> dict[str, list[float]]:
    """Milliseconds of each repetition, by implementation; each has been called before, so it is warm.

    Args:
        pools: implementation → itself ready for each case of the pool.
        mode: ``fwd``, ``bwd`` or ``full``.
        clock: how time is taken.
        budget: when an implementation has been measured enough.
    """
    times: dict[str, list[float]] = {name: [] for name in pools}
    with _undisturbed():
        for pool in pools.values():
            pool[-1].repetition(mode, clock)  # once more, for the allocator: what came between took its memory
        turn = 0
        order = random.Random(0)
        while live := [name for name in pools if not budget.spent(times[name])]:
            for name in order.sample(live, len(live)):
                pool = pools[name]
                times[name].append(pool[turn % len(pool)].repetition(mode, clock))
                turn += 1
    return times


@contextmanager
def _undisturbed() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
