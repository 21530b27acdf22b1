"""A weighted sum of other rewards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_core.run import Run


@dataclass
class Sum:
    """Σ weight · part; each part is logged by its name.

    ``reward=sum +reward@reward.parts.quality=learned reward.parts.quality.path=… +reward.weights.quality=0.5``
    """

    rlhf_api: ClassVar[int] = 1

    parts: dict[str, Any] = field(default_factory=dict)  # name → reward plugin
    weights: dict[str, float] = field(default_factory=dict)  # name → weight; 1 where none is given

    def setup(self, run: Run) -> None:
        """Set the parts up."""
        if not self.parts:
            raise UserError("reward.parts: empty; add one by +reward@reward.parts.NAME=PLUGIN")
        if unknown := sorted(set(self.weights) - set(self.parts)):
            raise UserError(f"reward.weights.{unknown[0]}: no such part; parts are {', '.join(self.parts)}")
        for part in self.parts.values():
            part.setup(run)

    def score_parts(self, samples: Samples) -> Mapping[str, Tensor]:
        """``[B]`` float32 scores of each part, before its weight."""
        return {name: part.score(samples).cpu() for name, part in self.parts.items()}

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 weighted sums."""
        return self.total(self.score_parts(samples))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of scores made before."""
        return torch.stack([self.weights.get(name, 1.0) * score for name, score in parts.items()]).sum(0)
