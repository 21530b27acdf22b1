"""Ragged batches: sequences laid end to end, never padded.

N packed tokens, B sequences. A per-token value at index t speaks of token t: ``logprobs[t]`` is log p(token t | those
before it in its sequence), ``values[t]`` the value of the state in which token t was chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .kernels.logprobs import IGNORED


@dataclass(frozen=True)
class Packed:
    """B sequences of token ids in one row.

    Attributes:
        tokens: ``[N]`` int64.
        cu_seqlens: ``[B+1]`` int32, the offsets at which sequences begin; first 0, last N.
    """

    tokens: Tensor
    cu_seqlens: Tensor

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], device: torch.device | None = None) -> "Packed":
        """Lay sequences end to end."""
        flat = [token for sequence in sequences for token in sequence]
        return Packed(torch.tensor(flat, dtype=torch.long, device=device), offsets(map(len, sequences), device))

    @cached_property
    def lengths(self) -> Tensor:
        """``[B]`` int64 tokens of each sequence."""
        return self.cu_seqlens.diff().long()

    @cached_property
    def sequence(self) -> Tensor:
        """``[N]`` int64 index of the sequence each token belongs to."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """``[N]`` int64 position of each token, counted from its own sequence's start."""
        return torch.arange(len(self.tokens), device=self.tokens.device) - self.cu_seqlens[:-1].long()[self.sequence]

    @cached_property
    def targets(self) -> Tensor:
        """``[N]`` int64 the token that follows each one in its sequence, ``IGNORED`` at a sequence's end."""
        targets = torch.roll(self.tokens, -1)
        targets[self.cu_seqlens[1:].long()[self.lengths > 0] - 1] = IGNORED
        return targets

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut a ``[N]`` tensor into one a sequence."""
        return list(torch.split(values, self.lengths.tolist()))


def offsets(lengths: Iterator[int] | Sequence[int], device: torch.device | None = None) -> Tensor:
    """``[B+1]`` int32 cumulative offsets of sequences of the given lengths."""
    sizes = torch.tensor([0, *lengths], dtype=torch.int64, device=device)
    return sizes.cumsum(0).to(torch.int32)


def following(values: Tensor) -> Tensor:
    """Move values from the position that predicts to the token predicted: ``out[t] = values[t-1]``, ``out[0] = 0``.

    A sequence's first token is predicted by nothing; give it 0 by an ``IGNORED`` target or a mask.
    """
    return torch.cat([values.new_zeros(1), values[:-1]])
