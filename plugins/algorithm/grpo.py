"""Group-relative policy optimisation: advantages from the other responses to the same prompt, no critic.

N packed tokens, B sequences in groups of G.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.errors import UserError
from rlhf_core.experience import Experience, Scored, minibatches, sample_and_score
from rlhf_core.held_out import HeldOut
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import per_token
from rlhf_core.run import Run

from .ppo import arithmetic, check_sampling, prompts_in_order


@dataclass(frozen=True)
class Batch:
    """One rollout with its advantages."""

    experience: Experience
    metrics: dict[str, float]
    step: int


@dataclass(frozen=True)
class Microbatch:
    """Some sequences of a batch; of their minibatch the loss's denominator, its tokens, and whether it is the first."""

    experience: Experience
    denominator: int
    tokens: int
    first: bool


@dataclass
class GRPO:
    """GRPO (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, eq. 3 and 4).

    A_i = (r_i − mean of its group) / std of its group, the same for every token of response i;
    loss = −mean over responses of 1/|o_i| Σ_t [ min(ρ_t·A_i, clip(ρ_t, 1 ± ε)·A_i) − β·KL_t(π‖π_ref) ], KL by k3.

    The gradient of sampled k3 is that of KL(π_ref‖π), so the optimum is not p_ref·exp(r/β) but β′·p_ref/(β′ + r̄ − r),
    β′ = β·G/(G − 1) (without the division by the std).
    """

    rlhf_api: ClassVar[int] = 1

    steps: int = 40  # rollouts
    batch_size: int = 8  # prompts a rollout
    responses: int = 8  # responses a prompt: the group
    epochs: int = 1  # passes over a rollout
    minibatches_a_pass: int = 1  # optimiser steps a pass
    clip: float = 0.2  # ratio clip ε, both sides
    kl_coef: float = 0.04  # β, the weight of the KL to the reference in the loss
    scale_by_std: bool = True  # false: advantages are not divided by the group's std (Dr. GRPO, arXiv:2503.20783)
    aggregate: str = "sequence"  # sequence: as in the paper; token: every token counts the same (DAPO)
    eval_prompts: int = 256  # held-out prompts answered at each evaluation
    eval_split: str = "test"  # where they come from: train, validation or test
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """Policy, frozen reference, prompts, and the start's answers to held-out ones."""
        self.run = run
        check_sampling(self, run)
        if self.responses < 2:
            raise UserError(f"algorithm.responses: got {self.responses}, but a group needs at least 2 to be compared")
        if self.aggregate not in ("sequence", "token"):
            raise UserError(f"algorithm.aggregate: got {self.aggregate!r}, expected sequence or token")
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()  # no dropout: old and new log-probs are of one network
        self.reference = self.policy.frozen() if self.kl_coef else None
        self.prompts, self.order = prompts_in_order(self, run)
        self.held_out = HeldOut(run, self.policy, self.eval_split, self.eval_prompts)
        return self.policy.model

    @property
    def total_steps(self) -> int:
        """Rollouts."""
        return self.steps

    def arithmetic(self) -> str:
        """The batch arithmetic in one line."""
        return arithmetic(self, self.run.microbatch_tokens)

    def collect(self, step: int) -> Batch:
        """Sample a group for each prompt, score it, and compare within it."""
        prompts = [self.prompts[index] for index in self.order.batch(step) for _ in range(self.responses)]
        scored = sample_and_score(self.run, self.policy, prompts, self.run.generator("rollout", step))
        experience, _ = self.advantages(scored, self.responses)
        groups = scored.scores.view(-1, self.responses)
        flat = float((groups.max(1).values == groups.min(1).values).float().mean())
        return Batch(experience, experience.statistics() | scored.metrics | {"flat_groups": flat}, step)

    def advantages(self, scored: Scored, group: int = 1) -> tuple[Experience, tuple[Tensor, Tensor]]:
        """Scores compared within groups of neighbours; with the mean and variance that are not used to whiten."""
        packed, mask = scored.packed, scored.mask
        reference = scored.logprobs
        if self.reference is not None:
            model, temperature = self.reference, self.run.rollout.temperature
            with torch.no_grad():
                reference = per_token(
                    lambda part: model.logprobs(part, temperature), packed, self.run.microbatch_tokens
                )
        per_response = group_advantages(scored.scores, group, scale_by_std=self.scale_by_std)
        advantages = per_response[packed.sequence] * mask
        zeros = torch.zeros_like(scored.logprobs)
        kl = (scored.logprobs - reference) * mask
        parts = (scored.logprobs, zeros, scored.scores, advantages, zeros, kl)
        return Experience(packed, mask, *parts), (zeros.sum(), zeros.sum() + 1)

    def minibatches(self, batch: Batch) -> Iterable[list[Microbatch]]:
        """``epochs`` passes in new orders, each cut into minibatches."""
        generator = self.run.generator("minibatches", batch.step)
        budget = self.run.microbatch_tokens
        plan = minibatches(batch.experience, self.epochs, self.minibatches_a_pass, budget, generator)
        for number, (parts, tokens) in enumerate(plan):
            responses = sum(int((part.per_sequence(part.mask.float()) > 0).sum()) for part in parts)
            denominator = tokens if self.aggregate == "token" else responses
            yield [Microbatch(part, denominator, tokens, first=number == 0) for part in parts]

    def loss(self, microbatch: Microbatch) -> Loss:
        """The clipped surrogate and the KL to the reference."""
        old = microbatch.experience
        logprobs = self.policy.logprobs(old.packed, self.run.rollout.temperature)
        reference = None if self.reference is None else old.logprobs - old.kl
        loss, metrics = kernels.grpo_loss(
            logprobs, old.logprobs, old.advantages, mask=old.mask, clip_low=self.clip, clip_high=self.clip,
            ref_logprobs=reference, kl_coef=self.kl_coef, aggregate=self.aggregate,
            cu_seqlens=old.packed.cu_seqlens, denominator=microbatch.denominator,
        )  # fmt: skip
        count = int(old.mask.sum())
        shown = {name: metrics[name] for name in ("approx_kl", "clip_frac", "ratio_mean", "ratio_max")}
        # Shares of the minibatch's, which means weighted by tokens have to add up to.
        shown |= {name: metrics[name] * microbatch.tokens / max(count, 1) for name in ("policy_loss", "kl")}
        first = {"first_ratio_max": metrics["ratio_max"]} if microbatch.first else {}
        return Loss(loss, shown | first, count)

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What the rollout was like."""
        return batch.metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """Reward, KL and length on held-out prompts, and what independent judges say of them."""
        return self.held_out.evaluate(step, self.advantages)

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, folder: Path) -> None:
        """The policy."""
        self.policy.save(folder)

    def headline(self, metrics: dict[str, float]) -> str:
        """What changed on held-out prompts."""
        return self.held_out.headline(metrics)


def group_advantages(scores: Tensor, group: int, *, scale_by_std: bool = True) -> Tensor:
    """``[B]`` scores less their group's mean, over its (population) std; 0 where all of a group are alike."""
    groups = scores.view(-1, group)
    centred = groups - groups.mean(1, keepdim=True)
    if scale_by_std:
        centred = centred / (groups.std(1, keepdim=True, correction=0) + 1e-4)
    return centred.flatten()
