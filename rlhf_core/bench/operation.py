"""What the harness has to know of an op. Each op's own file is in ``ops/``; a new file there is a new op.

N packed tokens, B sequences.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UserError
from .case import Case, Option

MODES = ("fwd", "bwd", "full")
LENGTHS = ("full", "ragged")


@dataclass(frozen=True)
class Work:
    """The least that any implementation has to do.

    Attributes:
        bytes: of memory, every input read once and every output written once.
        flops: in matrix products; 0 where the op has none.
    """

    bytes: int
    flops: int = 0


class Operation(ABC):
    """An op as a benchmark: inputs of a shape, the least work, what is compared, the presets' shapes."""

    name: ClassVar[str]
    dims: ClassVar[tuple[str, ...]]
    """what the numbers of a shape such as 64x512 are"""
    presets: ClassVar[Mapping[str, tuple[str, ...]]]
    """preset → shapes"""
    per_token: ClassVar[tuple[str, ...]] = ()
    """inputs that are ``[N]`` packed and ``[B, T]`` padded"""
    learnt: ClassVar[tuple[str, ...]] = ()
    """inputs that get a gradient: of ``loss``, or of ``out`` with the input ``upstream`` as what comes from above"""
    required: ClassVar[tuple[str, ...]]
    """outputs that every implementation has to give; any other named by ``outputs`` is compared where it is given"""
    options: ClassVar[Mapping[str, Option]] = {}
    sequences: ClassVar[bool] = True
    """whether it has sequences, which ``lengths=ragged`` makes differ"""
    kernel: ClassVar[str] = ""
    """the op of ``rlhf_core.kernels`` that this is a use of, where ``name`` is not that op's"""

    @property
    def of(self) -> str:
        """The name of the op of ``rlhf_core.kernels``."""
        return self.kernel or self.name

    @abstractmethod
    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Packed inputs on the CPU, floating ones of ``dtype``, for the numbers of a shape and sequences' lengths."""

    @abstractmethod
    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours, by the public function of ``rlhf_core.kernels``; ``eager`` in float64 is the reference."""

    @abstractmethod
    def work(self, case: Case, mode: str) -> Work:
        """The least work of ``fwd`` (inputs once), ``bwd`` and ``full`` (inputs and gradients once)."""

    def copied(self, case: Case, mode: str) -> float | None:
        """How much more work a copy of every shared prompt for each that shares it would be; None where none is."""
        return None

    def comparable(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is compared: the outputs themselves, or what follows from them (untimed)."""
        return dict(outputs)

    def modes(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``wanted`` that it has; without a gradient, all there is to ``full`` is ``fwd``."""
        return wanted if self.learnt else ("fwd",) * bool({"fwd", "full"} & set(wanted))

    def sizes(self, shape: str) -> tuple[int, ...]:
        """The numbers of a shape.

        Raises:
            UserError: it is not of the form that ``dims`` tells.
        """
        parts = shape.split("x")
        if len(parts) != len(self.dims) or not all(part.isdecimal() and int(part) > 0 for part in parts):
            form = "x".join(f"<{dim}>" for dim in self.dims)
            raise UserError(f"shape={shape}: {self.name} takes {form}, e.g. shape={self.presets['ci'][0]}")
        return tuple(map(int, parts))

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """``[B]`` lengths of sequences: all full, or ragged: uniform from an eighth up, and one of them full."""
        count, longest = sizes[:2]
        if how == "full":
            return [longest] * count
        least = max(1, longest // 8)
        drawn: list[int] = torch.randint(least, longest + 1, (count,), generator=generator).tolist()
        return [longest, *drawn[1:]]

    def case(self, shape: str, how: str, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
        """Inputs of a shape; the same seed gives the same, and the lengths are the same for all seeds."""
        sizes = self.sizes(shape)
        lengths = self.lengths(sizes, how, torch.Generator().manual_seed(0))
        drawn = self.inputs(sizes, lengths, dtype, torch.Generator().manual_seed(seed))
        return self.case_of(sizes, {name: tensor.to(device) for name, tensor in drawn.items()})

    def case_of(self, sizes: tuple[int, ...], inputs: Mapping[str, Tensor]) -> Case:
        """The case of inputs that lie on their device."""
        return Case(inputs, self.per_token, self.learnt, self.options)


def offsets(lengths: list[int]) -> Tensor:
    """``cu_seqlens [B+1]`` int32."""
    return torch.tensor([0, *lengths]).cumsum(0).int()
