"""Best of n: what the reward likes best of a policy's own samples, imitated, or chosen when asked.

N packed tokens, B sequences in groups of n neighbours.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.advantages import per_token, regularised
from rlhf_core.contracts.evaluator import Subject, measure
from rlhf_core.experience import Experience, Microbatch, minibatches, sample_and_score
from rlhf_core.on_policy import Batch, OnPolicy
from rlhf_core.optimizer import AdamW


@dataclass
class BestOfN(OnPolicy):
    """Best-of-n, as training (RAFT, Dong et al. 2023, arXiv:2304.06767) and as a policy (arXiv:2112.09332).

    Training: of n samples to a prompt the best is imitated, loss = −1/Σ|y| Σ log π(y_best), and the next n are sampled.
    Evaluation: for n = 1, 2, 4, … the best of n answers of the policy as it is, at a KL to it of log n − (n − 1)/n
    (Stiennon et al. 2020, arXiv:2009.01325, app. G.3); with ``trainer.max_steps=0`` that is all.
    """

    rlhf_api: ClassVar[int] = 1
    kl_places: ClassVar[tuple[str, ...]] = ("reward",)
    weighted: ClassVar[bool] = False
    rlhf_checks: ClassVar[dict[str, str]] = {
        "zero_advantage_gives_zero_gradient": "the best of n is imitated even where all are alike",
    }

    batch_size: int = 16  # prompts a rollout
    responses: int = 8  # n
    kl_coef: float = 0.0  # β of a KL in the reward by which the best is chosen
    curve: bool = True  # measure best-of-n for each power of 2 up to n at each evaluation
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def advantages(self, old: Experience, group: int) -> Experience:
        """1 for each token of a prompt's best response, 0 for the others."""
        scores = regularised(old, self.reward_kl, self.kl_estimator).view(-1, group)
        chosen = torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1.0)
        return replace(old, advantages=per_token(old, chosen.flatten()))

    def minibatches(self, batch: Batch) -> Iterable[list[Microbatch]]:
        """Of the best responses alone."""
        old = batch.experience
        best = (old.per_sequence(old.advantages) > 0).nonzero()[:, 0]
        generator, budget = self.run.generator("minibatches", batch.step), self.run.microbatch_tokens
        return minibatches(old.select(best.tolist()), self.epochs, self.minibatches_a_pass, budget, generator)

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Imitation, a mean over tokens."""
        mask = part.experience.mask
        loss = -(logprobs * mask).sum() / part.tokens
        return loss - self.entropy_coef * (entropy * mask).sum() / part.tokens, {"policy_loss": loss.detach()}

    def evaluate(self, step: int) -> dict[str, float]:
        """The policy's own answers, and the best of n."""
        return super().evaluate(step) | (self.best_of() if self.curve else {})

    def best_of(self) -> dict[str, float]:
        """Reward, KL and what the judges say of the best of 1, 2, 4, … n answers to held-out prompts."""
        prompts = [prompt for prompt in self.held_out.prompts for _ in range(self.responses)]
        scored = sample_and_score(self.run, self.policy, prompts, self.run.generator("best of n"))
        scores = scored.totals.view(-1, self.responses)
        found: dict[str, float] = {}
        for n in (2**power for power in range(self.responses.bit_length())):
            best = scores[:, :n].argmax(1) + torch.arange(len(scores), device=scores.device) * self.responses
            chosen = scored.select(best.tolist())
            judged = measure(self.run.evaluators, Subject(samples=chosen.samples, baseline=self.held_out.start.samples))
            row = {"reward": float(chosen.totals.mean()), "kl": math.log(n) - (n - 1) / n} | judged
            found |= {f"best_of_{n}/{name}": value for name, value in row.items()}
        return found
