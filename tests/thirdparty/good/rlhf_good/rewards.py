"""Rewards that read text; no torch at the top, so that choosing one stays cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ThirdParty:
    """Scores a response by its number of exclamation marks.

    A longer text, to see that only the first line is listed.
    """

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0
    """what one exclamation mark is worth"""
    marks: list[str] = field(default_factory=lambda: ["!"])  # the characters that count
    floor: float | None = None

    def score(self, samples: Sequence[Any]) -> Tensor:
        """One score a sample, float32 [B]."""
        import torch

        return torch.tensor([self.scale * sum(s.response.count(m) for m in self.marks) for s in samples])


@dataclass
class Brevity(ThirdParty):
    """Prefers responses of ``target`` tokens."""

    target: int = 10
    """tokens"""


@dataclass
class Mixture:
    """A sum of other rewards."""

    rlhf_api: ClassVar[int] = 1
    parts: dict[str, Any] = field(default_factory=dict)
    """name → reward; add one with +reward@reward.parts.NAME=…"""
    weights: dict[str, float] = field(default_factory=dict)
    """name → weight; 1 where none is given"""
