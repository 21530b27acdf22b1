"""A bound on how long responses are, for use in a sum."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_core.run import Run


@dataclass
class Length:
    """0 from ``minimum`` to ``maximum`` tokens; outside, minus the share by which a response falls short or goes over.

    A KL penalty is paid by the token, so a policy gains by saying less; as a part of ``reward=sum`` this takes the gain
    away.
    """

    rlhf_api: ClassVar[int] = 1

    minimum: int = 20  # tokens, the end token counted
    maximum: int = 40

    def setup(self, run: Run) -> None:
        """Check the bounds."""
        if not 0 < self.minimum <= self.maximum:
            raise UserError(
                f"reward minimum and maximum: got {self.minimum} and {self.maximum}, expected 0 < minimum ≤ maximum"
            )

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 scores, at most 0; where only text is known, words are counted."""
        counted = samples.response_ids or [response.split() for response in samples.responses]
        lengths = torch.tensor([len(response) for response in counted], dtype=torch.float32)
        short, over = (self.minimum - lengths) / self.minimum, (lengths - self.maximum) / self.maximum
        return -short.clamp(min=0) - over.clamp(min=0)
