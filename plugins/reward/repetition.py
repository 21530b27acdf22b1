"""A rule against saying the same again, for use in a sum, or as part of a judge."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import at_least
from rlhf_core.run import Run


@dataclass
class Repetition:
    """Minus the share of a response's n-grams of words that it has said before: 0 where none is, near −1 where all are.

    Reward models learned from what people wrote have never seen such text, so a policy finds out that it pays
    (Welleck et al. 2020, arXiv:1908.04319, measure it as seq-rep-n).
    """

    rlhf_api: ClassVar[int] = 1

    size: int = 1  # n: words a piece

    def setup(self, run: Run) -> None:
        """Check the size."""
        at_least(1, **{"reward size": self.size})

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 scores from −1 to 0; 0 for a response of fewer than n + 1 words."""
        return torch.tensor([-self.repeated(response.lower().split()) for response in samples.responses])

    def repeated(self, words: list[str]) -> float:
        """The share of pieces that came up before."""
        pieces = list(zip(*(words[start:] for start in range(self.size)), strict=False))
        return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0
