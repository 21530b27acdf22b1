"""The policy gradient itself: a response is one action, its reward less a baseline.

N packed tokens, B sequences.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.advantages import leave_one_out, per_token, regularised
from rlhf_core.errors import one_of
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.on_policy import Batch, OnPolicy
from rlhf_core.optimizer import AdamW
from rlhf_core.run import Run


@dataclass
class Unclipped(OnPolicy):
    """loss = −mean over responses of Σ_t ρ_t·A_t: every ratio counts as it is, every token once.

    With ρ = 1, as in the first update of a rollout, its gradient is that of −A·log π(y|x).
    """

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """−Σ ρ_t·A_t over the minibatch's responses."""
        old = part.experience
        return kernels.grpo_loss(
            logprobs, old.logprobs, old.advantages, clip_low=1.0, clip_high=math.inf, aggregate="constant",
            denominator=part.sequences, **self.terms(entropy, old),
        )  # fmt: skip


@dataclass
class Reinforce(Unclipped):
    """REINFORCE (Williams 1992) on whole responses (Ahmadian et al. 2024, arXiv:2402.14740, eq. 6).

    A = r(x, y) − β · log π(y|x)/π_ref(y|x) − baseline;  loss = −mean over responses of A · Σ_t log π(y_t|x, y_<t).
    The ratio to the policy that sampled, which is 1 in the first update of a rollout, corrects later ones; it is not
    clipped.
    """

    rlhf_api: ClassVar[int] = 1

    batch_size: int = 64  # prompts a rollout
    responses: int = 1  # responses a prompt
    baseline: str = "moving"  # moving: the mean of all rewards so far; batch: of the rollout's others; none
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """As every policy gradient; no reward was seen yet."""
        one_of("algorithm.baseline", self.baseline, ("moving", "batch", "none"))
        self.seen, self.mean = 0, 0.0
        return super().setup(run)

    def collect(self, step: int) -> Batch:
        """The rollout's rewards join the moving mean once its own advantages are made."""
        batch = super().collect(step)
        rewards = regularised(batch.experience, batch.metrics["kl_coef"] * (self.kl_in == "reward"), self.kl_estimator)
        self.seen += len(rewards)
        self.mean += float((rewards - self.mean).sum()) / self.seen
        return replace(batch, metrics=batch.metrics | {"baseline": self.mean})

    def advantages(self, old: Experience, group: int) -> Experience:
        """Rewards of whole responses less the baseline."""
        rewards = regularised(old, self.reward_kl, self.kl_estimator)
        if self.baseline == "batch" or (self.baseline == "moving" and not self.seen):
            rewards = leave_one_out(rewards, len(rewards))
        elif self.baseline == "moving":
            rewards = rewards - self.mean
        return replace(old, advantages=per_token(old, rewards))

    def state_dict(self) -> dict[str, Any]:
        """The KL coefficient and the moving mean."""
        return super().state_dict() | {"seen": self.seen, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        super().load_state_dict(state)
        self.seen, self.mean = state["seen"], state["mean"]
