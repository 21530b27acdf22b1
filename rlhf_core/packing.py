"""Which sequences go into which batch, and how a batch is cut to fit memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .batch import Packed
from .errors import UserError

T = TypeVar("T")


class Order:
    """The order in which examples are seen: a new permutation each epoch, a function of the seed and the step alone.

    Nothing of it has to be saved: step k of a resumed run sees what step k of the unbroken run saw.
    """

    def __init__(self, count: int, batch_size: int, seed: int, name: str = "data") -> None:
        """Batches of ``batch_size`` out of ``count`` examples; ``name`` says in an error which ones."""
        if count == 0:
            raise UserError(f"data: no {name} to train on; choose another data source")
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; what is left over comes up in another epoch's permutation."""
        return self.count // self.batch_size

    def steps(self, epochs: float) -> int:
        """Batches of so many passes over the examples; one at least."""
        return max(1, round(epochs * self.count / self.batch_size))

    def batch(self, step: int) -> list[int]:
        """The examples of batch ``step`` (0-based)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = epoch, torch.randperm(self.count, generator=generator).tolist()
        return self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size]


def spaced(items: Sequence[T], count: int) -> list[T]:
    """``count`` items at even distances over the whole sequence, all of them where there are fewer."""
    return [items[index * len(items) // count] for index in range(count)] if count < len(items) else list(items)


def per_step(order: Order, steps: int, budget: int) -> str:
    """How passes over the data become optimiser steps, for the line that is printed before the first one."""
    return f"÷ {order.batch_size} a step = {steps} optimiser steps, in microbatches of at most {budget} tokens"


def within(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of at most ``budget`` tokens, in order; one that is larger alone makes a group of its own."""
    group: list[int] = []
    used = 0
    for index, size in enumerate(sizes):
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(index)
        used += size
    if group:
        yield group


def per_token(function: Callable[[Packed], Tensor], packed: Packed, budget: int) -> Tensor:
    """``[N]`` values that ``function`` gives of a packed row, computed in pieces of at most ``budget`` tokens."""
    parts = [function(packed.slice(group[0], group[-1] + 1)) for group in within(packed.costs, budget)]
    return torch.cat(parts) if parts else torch.zeros(0)
