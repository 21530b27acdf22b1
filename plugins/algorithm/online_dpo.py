"""Direct preference optimisation on fresh pairs: the reward says which of two samples is better.

N packed tokens, B sequences in groups of neighbours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.advantages import flat_groups, per_token, regularised
from rlhf_core.errors import UserError
from rlhf_core.experience import Experience, Microbatch, minibatches
from rlhf_core.kernels.preference_loss import METRICS
from rlhf_core.on_policy import Batch, OnPolicy
from rlhf_core.optimizer import AdamW
from rlhf_core.run import Run


@dataclass
class OnlineDPO(OnPolicy):
    """Online DPO (Guo et al. 2024, arXiv:2402.04792, alg. 1); of more than two responses, the best and the worst.

    loss = −mean over prompts of log σ(β·[log π(y⁺)/π_ref(y⁺) − log π(y⁻)/π_ref(y⁻)]), y⁺, y⁻ the policy's own samples.
    A prompt whose responses all score alike says nothing.
    """

    rlhf_api: ClassVar[int] = 1
    shares: ClassVar[tuple[str, ...]] = METRICS
    kl_places: ClassVar[tuple[str, ...]] = ("reward",)
    weighted: ClassVar[bool] = False

    batch_size: int = 32  # prompts a rollout
    responses: int = 2  # responses a prompt
    beta: float = 0.1  # β of the DPO loss
    kl_coef: float = 0.0  # of a KL in the reward by which pairs are made, beside that which β stands for
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """As every policy gradient; a pair takes two."""
        if self.responses == 1:
            raise UserError("algorithm.responses: got 1, but a pair takes 2")
        if self.beta <= 0:
            raise UserError(f"algorithm.beta: got {self.beta}, expected more than 0")
        return super().setup(run)

    def advantages(self, old: Experience, group: int) -> Experience:
        """The scores themselves, by which pairs are made."""
        scores = regularised(old, self.reward_kl, self.kl_estimator)
        return replace(old, advantages=per_token(old, scores))

    def minibatches(self, batch: Batch) -> Iterable[list[Microbatch]]:
        """Best and worst of each prompt side by side, never cut apart."""
        old = batch.experience
        scores = regularised(old, batch.metrics["kl_coef"], self.kl_estimator).view(-1, self.responses)
        pairs = torch.stack([scores.argmax(1), scores.argmin(1)], 1)
        places = pairs + torch.arange(len(scores), device=scores.device)[:, None] * self.responses
        chosen = old.select(places[~flat_groups(scores, self.responses)].flatten().tolist())
        generator = self.run.generator("minibatches", batch.step)
        budget = self.run.microbatch_tokens
        return minibatches(chosen, self.epochs, self.minibatches_a_pass, budget, generator, group=2)

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The DPO loss of pairs."""
        old = part.experience
        sums, reference = old.per_sequence(logprobs * old.mask), old.per_sequence(old.ref_logprobs)
        loss, metrics = kernels.preference_loss(
            sums[::2], sums[1::2], reference[::2], reference[1::2], beta=self.beta, denominator=part.groups
        )
        return loss - self.entropy_coef * (entropy * old.mask).sum() / part.tokens, metrics
