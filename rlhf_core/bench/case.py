"""One set of inputs of an op, in both layouts that implementations take.

N packed tokens, B sequences, T the longest sequence.
"""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

Option = float | str | None


class Case:
    """Inputs by name, and the op's numbers.

    Attributes:
        packed: per-token tensors ``[N]``, and the others; with ``cu_seqlens [B+1]`` where the op has sequences.
        options: the op's numbers, such as ``gamma``.
        learnt: names of the inputs that get a gradient.
    """

    def __init__(
        self, packed: Mapping[str, Tensor], per_token: tuple[str, ...], learnt: tuple[str, ...],
        options: Mapping[str, Option],
    ) -> None:  # fmt: skip
        """Take the inputs; those to be learnt become leaves."""
        self.per_token, self.learnt, self.options = per_token, learnt, options
        self.packed: Mapping[str, Tensor] = self._with_leaves(packed)

    def number(self, name: str) -> float:
        """An option that is a number."""
        value = self.options[name]
        if not isinstance(value, int | float):
            raise TypeError(f"options[{name!r}] is {value!r}, not a number")
        return value

    @cached_property
    def padded(self) -> Mapping[str, Tensor]:
        """The same with per-token tensors as ``[B, T, …]``, zeros (False in a mask) behind each sequence's end.

        With ``lengths [B]`` int64 beside them. An op without sequences has one layout only.
        """
        if "cu_seqlens" not in self.packed:
            return self.packed
        rest = {name: tensor for name, tensor in self.packed.items() if name not in self.per_token}
        rest["lengths"] = self._lengths
        return self._with_leaves(rest | {name: self.to_padded(self.packed[name].detach()) for name in self.per_token})

    def to_padded(self, packed: Tensor) -> Tensor:
        """``[B, T, …]`` of ``[N, …]``."""
        rectangle = packed.new_zeros((*self._rectangle, *packed.shape[1:]))
        rectangle[self._place] = packed
        return rectangle

    def to_packed(self, tensor: Tensor) -> Tensor:
        """``[N, …]`` of ``[B, T, …]``; any other shape as it is."""
        padded = "cu_seqlens" in self.packed and tuple(tensor.shape[:2]) == self._rectangle
        return tensor[self._place] if padded else tensor

    def gradient_to_packed(self, tensor: Tensor) -> Tensor:
        """The same of a gradient: where a layout holds a token several times, their sum."""
        return self.to_packed(tensor)

    def leaves(self) -> list[tuple[str, Tensor]]:
        """The inputs to be learnt, of each layout that was made."""
        layouts = [self.packed] + ([self.padded] if "padded" in vars(self) and self.padded is not self.packed else [])
        return [(name, layout[name]) for layout in layouts for name in self.learnt]

    def wide(self) -> "Case":
        """The same numbers in float64, for the reference."""
        wide = {
            name: tensor.detach().double() if tensor.is_floating_point() else tensor
            for name, tensor in self.packed.items()
        }
        return Case(wide, self.per_token, self.learnt, self.options)

    @property
    def bytes(self) -> int:
        """Of the packed inputs."""
        return sum(tensor.nbytes for tensor in self.packed.values())

    @cached_property
    def _lengths(self) -> Tensor:
        return self.packed["cu_seqlens"].diff().long()

    @cached_property
    def _rectangle(self) -> tuple[int, int]:
        return len(self._lengths), int(self._lengths.max())

    @cached_property
    def _place(self) -> tuple[Tensor, Tensor]:
        """Row and column of each packed token."""
        offsets = self.packed["cu_seqlens"].long()
        row = torch.repeat_interleave(torch.arange(len(self._lengths), device=offsets.device), self._lengths)
        return row, torch.arange(len(row), device=offsets.device) - offsets[row]

    def _with_leaves(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.detach().requires_grad_() if name in self.learnt else t for name, t in tensors.items()}


def widened(tensor: Tensor) -> Tensor:
    """As float32 where it is narrower: what losses are computed in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
