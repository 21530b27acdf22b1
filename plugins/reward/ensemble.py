"""Several learned reward models as one reward: what they disagree about is not worth chasing.

B responses, K members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError, one_of
from rlhf_core.run import Run

from .learned import Learned


@dataclass
class Ensemble:
    """Reward models that differ in seed or data, combined against over-optimisation (Coste et al., arXiv:2310.02743).

    mean: the members' mean; worst: their minimum (WCO); uncertainty: mean − penalty · variance (UWO), the variance over
    the K members. All three of mean, worst and disagreement (the members' standard deviation) are logged.

    ``reward=ensemble reward.paths=[A/result,B/result,C/result] reward.combine=worst``
    """

    rlhf_api: ClassVar[int] = 1

    paths: list[str] = field(default_factory=list)  # result folders of reward_model stages
    combine: str = "mean"  # mean, worst or uncertainty
    penalty: float = 0.5  # weight of the variance with combine=uncertainty
    scale: float = 1.0  # the combined score is multiplied by this
    dtype: str = "float32"  # of the weights: float32 or bfloat16

    def setup(self, run: Run) -> None:
        """Load the members."""
        one_of("reward.combine", self.combine, ("mean", "worst", "uncertainty"))
        if not self.paths:
            raise UserError("reward.paths: empty, expected result folders of reward_model stages")
        self.members = [Learned(path=path, dtype=self.dtype) for path in self.paths]
        for place, member in enumerate(self.members):
            try:
                member.setup(run)
            except UserError as error:
                raise UserError(str(error).replace("reward.path:", f"reward.paths[{place}]:")) from error

    def score_parts(self, samples: Samples) -> Mapping[str, Tensor]:
        """``[B]`` float32 mean, minimum and standard deviation of the members' scores."""
        scores = torch.stack([member.score(samples).float().cpu() for member in self.members])
        return {"mean": scores.mean(0), "worst": scores.amin(0), "disagreement": scores.std(0, correction=0)}

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 combined scores."""
        return self.total(self.score_parts(samples))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The combination of scores made before."""
        if self.combine == "uncertainty":
            return self.scale * (parts["mean"] - self.penalty * parts["disagreement"].square())
        return self.scale * parts[self.combine]
