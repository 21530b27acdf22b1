"""A benchmark: one implementation of some ops, that ``rlhf bench`` compares with the others."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:  # `rlhf list` reads contracts without torch
    import torch
    from torch import Tensor

    from ..bench.case import Case


@runtime_checkable
class Benchmark(Protocol):
    """Registered by the entry-point group ``rlhf.benchmark``; a dataclass with ``rlhf_api``, as every plugin is.

    Attributes:
        ops: names of the ops it covers (``rlhf bench list`` shows them all).
        kind: ``baseline`` (plain PyTorch), ``ours`` (a regression of these fails ``rlhf bench compare``) or ``peer``.
    """

    ops: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]

    def why_not(self, op: str, device: "torch.device", dtype: "torch.dtype") -> str | None:
        """Why it cannot compute ``op`` here, in a few words for people ("not installed"); None where it can."""

    def prepare(self, op: str, case: "Case") -> "Callable[[], Mapping[str, Tensor]]":
        """Get ready, untimed, to compute ``op`` from this case's inputs; called once for each case of a pool.

        Args:
            op: one of ``ops``.
            case: the inputs, as ``case.packed`` and as ``case.padded``, and the op's numbers, ``case.options``.

        Returns:
            What is timed: computes the op's outputs by name (``rlhf_core/bench/ops/<op>.py`` names them), in either
            layout. The ``loss`` (or, of an op that is none, ``out``) is differentiable: the harness calls
            ``autograd.grad`` on it, so inputs may not be detached, and no gradient is returned from here.
        """
