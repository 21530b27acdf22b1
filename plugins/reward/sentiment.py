"""The lexicon rule: how positive a response's words are."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlhf_core.contracts.reward import Samples
from rlhf_core.run import Run


@dataclass
class Sentiment:
    """VADER's compound score of the response, from −1 to +1 (Hutto & Gilbert, ICWSM 2014)."""

    rlhf_api: ClassVar[int] = 1

    scale: float = 1.0  # the score is multiplied by this

    def setup(self, run: Run) -> None:
        """Nothing to load."""

    @cached_property
    def _analyzer(self) -> SentimentIntensityAnalyzer:
        return SentimentIntensityAnalyzer()

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 scores of the responses' text alone."""
        scores = [self._analyzer.polarity_scores(response)["compound"] for response in samples.responses]
        return self.scale * torch.tensor(scores, dtype=torch.float32)
