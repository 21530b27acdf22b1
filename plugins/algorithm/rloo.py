"""REINFORCE whose baseline is the mean of the other responses to the same prompt."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from rlhf_core.advantages import leave_one_out, per_token, regularised
from rlhf_core.experience import Experience
from rlhf_core.optimizer import AdamW

from .reinforce import Unclipped


@dataclass
class RLOO(Unclipped):
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, eq. 8).

    R_i = r(x, y_i) − β · log π(y_i|x)/π_ref(y_i|x),  A_i = R_i − mean of the R_j, j ≠ i, to the same prompt;
    loss = −mean over responses of A_i · Σ_t log π(y_t|x, y_<t).
    """

    rlhf_api: ClassVar[int] = 1
    grouped: ClassVar[bool] = True

    batch_size: int = 16  # prompts a rollout
    responses: int = 4  # responses a prompt
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def advantages(self, old: Experience, group: int) -> Experience:
        """Rewards of whole responses less the mean of the others'."""
        rewards = regularised(old, self.reward_kl, self.kl_estimator)
        return replace(old, advantages=per_token(old, leave_one_out(rewards, group)))
