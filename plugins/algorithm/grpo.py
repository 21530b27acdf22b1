"""Group-relative policy optimisation: advantages from the other responses to the same prompt, no critic.

N packed tokens, B sequences in groups of G.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.advantages import flat_groups, group_advantages, per_token, regularised, step_advantages
from rlhf_core.errors import one_of
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.on_policy import Batch, Clipped
from rlhf_core.optimizer import AdamW
from rlhf_core.run import Run


@dataclass
class GRPO(Clipped):
    """GRPO (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, eq. 3 and 4).

    A_i = (r_i − mean of its group) / std of its group, the same for every token of response i;
    loss = −mean over responses of 1/|o_i| Σ_t [ min(ρ_t·A_i, clip(ρ_t, 1 ± ε)·A_i) − β·KL_t(π‖π_ref) ], KL by k3.
    Rewards of steps on the way (process supervision) are compared within the group and summed from each token on.

    The gradient of sampled k3 is that of KL(π_ref‖π), so the optimum is not p_ref·exp(r/β) but β′·p_ref/(β′ + r̄ − r),
    β′ = β·G/(G − 1) (without the division by the std). ``kl_in=reward kl_estimator=k1`` has p_ref·exp(r/β).
    """

    rlhf_api: ClassVar[int] = 1
    grouped: ClassVar[bool] = True

    batch_size: int = 8  # prompts a rollout
    responses: int = 8  # responses a prompt: the group
    kl_coef: float = 0.04  # β, the weight of the KL to the reference
    kl_in: str = "loss"  # loss, as in the paper, or reward
    kl_estimator: str = "k3"  # k3, as in the paper, k2, or (in the reward) k1
    scale_by_std: bool = True  # false: advantages are not divided by the group's std
    aggregate: str = "sequence"  # sequence: as in the paper; token: every token counts the same; constant: no length
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """As every policy gradient."""
        one_of("algorithm.aggregate", self.aggregate, ("sequence", "token", "constant"))
        return super().setup(run)

    def collect(self, step: int) -> Batch:
        """A group for each prompt; those whose scores are all alike teach nothing, and are counted."""
        batch = super().collect(step)
        flat = flat_groups(batch.experience.totals, self.responses).float().mean()
        return replace(batch, metrics=batch.metrics | {"flat_groups": float(flat)})

    def advantages(self, old: Experience, group: int) -> Experience:
        """Scores compared within the group, for every token of the response."""
        scores = regularised(replace(old, rewards=None), self.reward_kl, self.kl_estimator)
        advantages = per_token(old, group_advantages(scores, group, scale_by_std=self.scale_by_std))
        if old.rewards is not None:
            advantages = advantages + step_advantages(old, group, scale_by_std=self.scale_by_std)
        return replace(old, advantages=advantages)

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate and the KL to the reference."""
        old = part.experience
        denominators = {
            "token": part.tokens,
            "sequence": part.sequences,
            "constant": part.sequences * getattr(self.run.rollout, "max_new_tokens", 1),
        }
        return kernels.grpo_loss(
            logprobs, old.logprobs, old.advantages, aggregate=self.aggregate, denominator=denominators[self.aggregate],
            **self.ratios(), **self.terms(entropy, old),
        )  # fmt: skip
