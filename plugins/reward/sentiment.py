"""A rule as reward: how positive the words of a response are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlhf_core.contracts.reward import Samples

if TYPE_CHECKING:
    from rlhf_core.run import Run


@dataclass
class Sentiment:
    """The compound score, from −1 to 1, of the VADER lexicon and its rules (Hutto & Gilbert, ICWSM 2014).

    It reads the response alone. It knows English words, not what they are about: easily gamed, so better as an
    independent judge than as the reward itself.
    """

    rlhf_api: ClassVar[int] = 1

    scale: float = 1.0  # the compound score is multiplied by this

    def setup(self, run: "Run") -> None:
        """Read the lexicon."""
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32, from ``-scale`` to ``scale``; 0 for a response without words the lexicon knows."""
        compounds = [self._analyzer.polarity_scores(response)["compound"] for response in samples.responses]
        return self.scale * torch.tensor(compounds, dtype=torch.float32)
