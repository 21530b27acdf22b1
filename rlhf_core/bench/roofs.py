"""What the machine can do at best, measured in the same run: copies of memory, and a matrix product.

A copy of n bytes reads n and writes n: 2n are counted. ``Copy`` moves as many bytes as an op has to, and is timed among
the implementations; ``dram`` is one far larger than any cache, timed alone, its best of many, as the product is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .timing import Budget, Clock

DRAM_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
BUDGET = Budget(repetitions=50, seconds=0.2)


@dataclass(frozen=True)
class Roofs:
    """Bytes a second of a copy far larger than the caches, and flops a second of a matrix product."""

    dram: float
    gemm: float


def measure_roofs(device: torch.device, dtype: torch.dtype, clock: Clock) -> Roofs:
    """The two that do not depend on a shape."""
    return Roofs(copy_rate(2 * DRAM_BYTES[device.type], device, clock), gemm_rate(device, dtype, clock))


class Copy:
    """A copy that moves so many bytes, half of them read."""

    def __init__(self, moved: int, device: torch.device) -> None:
        """Make the buffers and touch them."""
        self.bytes = 2 * max(moved // 2, 1)
        self.to, self.of = torch.zeros(2, self.bytes // 2, dtype=torch.int8, device=device).unbind()

    def repetition(self, mode: str, clock: Clock) -> float:
        """Milliseconds of one; it is the same in every mode."""
        return clock.time(lambda: self.to.copy_(self.of))


def copy_rate(moved: int, device: torch.device, clock: Clock) -> float:
    """Bytes a second of a copy that moves ``moved`` bytes."""
    copy = Copy(moved, device)
    return copy.bytes / _seconds(lambda: copy.to.copy_(copy.of), clock)


def gemm_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Flops a second of a square product."""
    n = GEMM_SIZE[device.type]
    a, b = torch.randn(2, n, n, device=device).to(dtype).unbind()
    return 2 * n**3 / _seconds(lambda: a @ b, clock)


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    call()
    times: list[float] = []
    while not BUDGET.spent(times):
        times.append(clock.time(call))
    return min(times) / 1e3
