"""The kernels of ``rlhf_core.kernels``, by its public functions, a class a backend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.bench.case import Case
from rlhf_core.bench.ops import operations


class _Backend:
    """What the backends share."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "ours"
    backend: ClassVar[str]
    device: ClassVar[str | None] = None
    ops: ClassVar[tuple[str, ...]] = tuple(operations())

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """What the dispatcher says of this machine, and whether the device is its own."""
        of = operations()[op].of
        rows = [row for row in kernels.status() if row["op"] == of and row["backend"] == self.backend]
        if rows and not rows[0]["available"]:
            return rows[0]["reason"]
        if self.device not in (None, device.type):
            return f"needs a {'CUDA' if self.device == 'cuda' else 'CPU'} device"
        return None

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """The op on the packed inputs."""
        operation = operations()[op]
        return lambda: operation.outputs(case, self.backend)


@dataclass
class Definition(_Backend):
    """``backend="eager"``: the op's definition on packed tokens, and what it falls back to."""

    kind: ClassVar[str] = "baseline"
    backend: ClassVar[str] = "eager"


@dataclass
class Cpu(_Backend):
    """The C++ kernels."""

    backend: ClassVar[str] = "cpu"
    device: ClassVar[str | None] = "cpu"


@dataclass
class Triton(_Backend):
    """The Triton kernels."""

    backend: ClassVar[str] = "triton"
    device: ClassVar[str | None] = "cuda"


@dataclass
class Cuda(_Backend):
    """The CUDA kernels."""

    backend: ClassVar[str] = "cuda"
    device: ClassVar[str | None] = "cuda"
