"""REINFORCE with PPO's means and no critic: rewards to go, whitened over the whole rollout.

N packed tokens, B sequences.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.advantages import leave_one_out, rewards_to_go
from rlhf_core.errors import UserError, one_of
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.on_policy import OnPolicy
from rlhf_core.optimizer import AdamW
from rlhf_core.run import Run


@dataclass
class ReinforcePP(OnPolicy):
    """REINFORCE++ (Hu et al. 2025, arXiv:2501.03262).

    A_t = r(x, y) − β · Σ_{k≥t} KL_k, whitened over all tokens of the rollout; loss = −mean over tokens of
    min(ρ_t·A_t, clip(ρ_t, 1 ± ε)·A_t). ``baseline=group`` takes the mean of the prompt's other responses off first
    (REINFORCE++-baseline; were the response itself in the mean, as in the paper, its score would lose to the KL).
    """

    rlhf_api: ClassVar[int] = 1

    batch_size: int = 64  # prompts a rollout
    responses: int = 1  # responses a prompt
    minibatches_a_pass: int = 2  # optimiser steps a pass
    gamma: float = 1.0  # discount a token
    clip: float = 0.2  # ratio clip ε, both sides
    baseline: str = "none"  # none, or group
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """As every policy gradient."""
        one_of("algorithm.baseline", self.baseline, ("none", "group"))
        if self.baseline == "group" and self.responses == 1:
            raise UserError("algorithm.responses: got 1, but algorithm.baseline=group needs at least 2")
        return super().setup(run)

    def advantages(self, old: Experience, group: int) -> Experience:
        """Rewards to go; the loss whitens them by the moments of the whole rollout."""
        if self.baseline == "group" and group > 1:
            old = replace(old, scores=leave_one_out(old.scores, group))
        found = rewards_to_go(old, self.reward_kl, self.kl_estimator, self.gamma)
        return replace(old, advantages=found.advantages, moments=(found.mean, found.var))

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate, a mean over tokens."""
        old = part.experience
        return kernels.ppo_loss(
            logprobs, old.logprobs, old.advantages, clip_low=self.clip, clip_high=self.clip, denominator=part.tokens,
            **self.terms(entropy, old),
        )  # fmt: skip
