"""Proximal policy optimisation on a learned reward, as InstructGPT has it.

N packed tokens, B sequences.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.batch import following
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.contracts.data import Prompt
from rlhf_core.errors import UserError, at_least
from rlhf_core.experience import Experience, Scored, minibatches, sample_and_score
from rlhf_core.held_out import HeldOut
from rlhf_core.kl_controller import KLController
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, per_token
from rlhf_core.run import Run
from rlhf_core.text import encode_document

from .lm import Microbatch as Text
from .lm import microbatches as text_microbatches
from .lm import pieces


@dataclass(frozen=True)
class Batch:
    """One rollout with its advantages, by whose mean and variance over the whole batch they are whitened."""

    experience: Experience
    whiten: tuple[Tensor, Tensor]
    metrics: dict[str, float]
    step: int


@dataclass(frozen=True)
class Microbatch:
    """Some sequences of a batch, how many response tokens their minibatch holds, and whether it is the first."""

    experience: Experience
    whiten: tuple[Tensor, Tensor]
    denominator: int
    first: bool


@dataclass
class PPO:
    """PPO (Schulman et al. 2017, arXiv:1707.06347) for language models (Ouyang et al. 2022, arXiv:2203.02155, eq. 2).

    objective = E[ r(x, y) − β · log π(y|x)/π_ref(y|x) ] + γ_ptx · E[ log π(pretraining text) ],
    the first term by clipped ratios and GAE advantages, the KL as a per-token reward.
    """

    rlhf_api: ClassVar[int] = 1

    steps: int = 40  # rollouts
    batch_size: int = 64  # prompts a rollout
    responses: int = 1  # responses a prompt
    epochs: int = 2  # passes over a rollout
    minibatches_a_pass: int = 2  # optimiser steps a pass
    gamma: float = 1.0  # discount a token
    lam: float = 0.95  # GAE's λ
    clip: float = 0.2  # ratio clip, both sides
    value_clip: float = 0.2  # values move no further than this from the old ones
    value_coef: float = 0.5  # weight of the value loss
    entropy_coef: float = 0.0  # weight of the entropy bonus
    score_clip: float | None = None  # scores are clipped to ± this
    missing_eos_penalty: float = 0.0  # taken from the score of a response that was cut
    kl_coef: float = 0.05  # β at the start, on nats
    kl_target: float | None = None  # nats a response that β is steered towards; null keeps β fixed
    kl_horizon: int = 1000  # responses over which β follows
    ptx_coef: float = 0.0  # γ_ptx, the weight of the pretraining loss
    ptx_batch: int = 32  # documents of pretraining text an optimiser step
    ptx_length: int = 256  # tokens; a longer document is cut into pieces
    critic_path: str | None = None  # what the critic starts from, as a rule the reward model; null: the policy
    freeze_critic: bool = False  # its values then stay what they were at the start: zero
    eval_prompts: int = 256  # held-out prompts answered at each evaluation
    eval_split: str = "test"  # where they come from: train, validation or test
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """Policy, frozen reference, critic with a head of zeros; prompts, and the start's answers to held-out ones."""
        self.run = run
        check_sampling(self, run)
        at_least(1, algorithm__ptx_batch=self.ptx_batch)
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()  # no dropout: old and new log-probs are of one network
        self.reference = self.policy.frozen()
        self.critic = run.policy.scalar_model(self.critic_path).to(run.device).eval()
        if self.critic.tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
            raise UserError(f"algorithm.critic_path: {self.critic_path} has another tokenizer than the policy")
        self.critic.reset_head(std=0.0)
        if self.freeze_critic:
            self.critic.requires_grad_(False)
        self.kl = KLController(self.kl_coef, self.kl_target, self.kl_horizon)
        self.prompts, self.order = prompts_in_order(self, run)
        if self.ptx_coef:
            documents = (encode_document(self.policy.tokenizer, text) for text in run.data.text("train"))
            self.texts = [piece for tokens in documents for piece in pieces(tokens, self.ptx_length)]
            self.text_order = Order(len(self.texts), self.ptx_batch, run.seed + 1, "text")
        self.held_out = HeldOut(run, self.policy, self.eval_split, self.eval_prompts)
        return nn.ModuleDict({"policy": self.policy.model, "critic": self.critic})

    @property
    def total_steps(self) -> int:
        """Rollouts."""
        return self.steps

    def arithmetic(self) -> str:
        """The batch arithmetic in one line."""
        return arithmetic(self, self.run.microbatch_tokens)

    def collect(self, step: int) -> Batch:
        """Sample, score, and turn scores into advantages."""
        prompts = [self.prompts[index] for index in self.order.batch(step) for _ in range(self.responses)]
        scored = sample_and_score(self.run, self.policy, prompts, self.run.generator("rollout", step))
        experience, stats = self.advantages(scored)
        metrics = experience.statistics() | scored.metrics | {"kl_coef": self.kl.coef}
        self.kl.update(metrics["kl"], episodes=len(prompts))
        return Batch(experience, stats, metrics, step)

    def advantages(self, scored: Scored) -> tuple[Experience, tuple[Tensor, Tensor]]:
        """GAE on the score at the end and −β·KL at every token; with the advantages' mean and variance."""
        packed, mask, budget = scored.packed, scored.mask, self.run.microbatch_tokens
        with torch.no_grad():
            reference = per_token(
                lambda part: self.reference.logprobs(part, self.run.rollout.temperature), packed, budget
            )
            values = per_token(lambda part: following(self.critic(part)), packed, budget) * mask
        gae = kernels.shaped_gae(
            scored.scores - self.missing_eos_penalty * scored.cut, values, packed.cu_seqlens, mask=mask,
            logprobs=scored.logprobs, ref_logprobs=reference * mask, gamma=self.gamma, lam=self.lam,
            kl_coef=self.kl.coef, score_clip=self.score_clip,
        )  # fmt: skip
        parts = (scored.logprobs, values, scored.scores, gae.advantages, gae.returns, gae.kl)
        return Experience(packed, mask, *parts), (gae.mean, gae.var)

    def minibatches(self, batch: Batch) -> Iterable[list[Microbatch | Text]]:
        """``epochs`` passes in new orders, each cut into minibatches; pretraining text joins each."""
        generator = self.run.generator("minibatches", batch.step)
        plan = minibatches(
            batch.experience, self.epochs, self.minibatches_a_pass, self.run.microbatch_tokens, generator
        )
        for number, (parts, denominator) in enumerate(plan):
            pieces = [Microbatch(part, batch.whiten, denominator, first=number == 0) for part in parts]
            yield [*pieces, *self.text(batch.step * self.epochs * self.minibatches_a_pass + number)]

    def text(self, update: int) -> Iterable[Text]:
        """The pretraining text of an optimiser step."""
        if self.ptx_coef:
            documents = [(self.texts[index], 1) for index in self.text_order.batch(update)]
            yield from text_microbatches(documents, self.run.microbatch_tokens, self.run.device)

    def loss(self, microbatch: Microbatch | Text) -> Loss:
        """The clipped surrogate and value losses of sampled responses, or γ_ptx times the loss on pretraining text."""
        if isinstance(microbatch, Text):
            total = -(self.policy.logprobs(microbatch.packed) * microbatch.mask).sum()
            count = int(microbatch.mask.sum())
            return Loss(self.ptx_coef * total / microbatch.denominator, {"ptx_loss": total.detach() / count}, count)
        old = microbatch.experience
        logprobs, entropy = self.policy.logprobs_and_entropy(old.packed, self.run.rollout.temperature)
        if not self.entropy_coef:
            entropy = entropy.detach()  # only logged: no gradient through [N, V] for nothing
        loss, metrics = kernels.ppo_loss(
            logprobs, old.logprobs, old.advantages, mask=old.mask, values=following(self.critic(old.packed)),
            old_values=old.values, returns=old.returns, clip_low=self.clip, clip_high=self.clip,
            value_clip=self.value_clip, value_coef=self.value_coef, whiten=microbatch.whiten, entropy=entropy,
            entropy_coef=self.entropy_coef, cu_seqlens=old.packed.cu_seqlens, denominator=microbatch.denominator,
        )  # fmt: skip
        count = int(old.mask.sum())
        for name in ("policy_loss", "value_loss", "entropy"):  # shares of the minibatch's; means are logged
            metrics[name] *= microbatch.denominator / max(count, 1)
        first = {"first_ratio_max": metrics["ratio_max"]} if microbatch.first else {}
        return Loss(loss, {name: value for name, value in metrics.items() if name != "kl"} | first, count)

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What the rollout was like."""
        return batch.metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """Reward, KL and length on held-out prompts, and what independent judges say of them."""
        return self.held_out.evaluate(step, self.advantages)

    def state_dict(self) -> dict[str, Any]:
        """The KL coefficient as it is now."""
        return {"kl_coef": self.kl.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the saved KL coefficient."""
        self.kl.coef = state["kl_coef"]

    def save(self, folder: Path) -> None:
        """The policy."""
        self.policy.save(folder)

    def headline(self, metrics: dict[str, float]) -> str:
        """What changed on held-out prompts."""
        return self.held_out.headline(metrics)


class Sampling(Protocol):
    """How an algorithm that samples makes its batches."""

    steps: int
    batch_size: int
    responses: int
    epochs: int
    minibatches_a_pass: int


def check_sampling(algorithm: Sampling, run: Run) -> None:
    """Refuse what would train on something else than was sampled, or numbers that do not divide."""
    for name in ("steps", "batch_size", "responses", "epochs", "minibatches_a_pass"):
        at_least(1, **{f"algorithm__{name}": getattr(algorithm, name)})
    if run.rollout.top_p != 1.0:
        raise UserError(
            f"rollout.top_p: got {run.rollout.top_p}, but training needs 1.0 (a nucleus changes the support, "
            "so the recorded log-probs would not be those of the samples)"
        )
    if algorithm.batch_size * algorithm.responses % algorithm.minibatches_a_pass:
        raise UserError(
            f"algorithm.minibatches_a_pass: {algorithm.batch_size} prompts × {algorithm.responses} responses do not "
            f"divide into {algorithm.minibatches_a_pass}"
        )


def prompts_in_order(algorithm: Sampling, run: Run) -> tuple[list[Prompt], Order]:
    """The prompts to answer, and which of them a rollout takes; as many as one takes, or more."""
    prompts = list(run.data.prompts("train"))
    order = Order(len(prompts), algorithm.batch_size, run.seed, "prompts")
    if len(prompts) < algorithm.batch_size:
        raise UserError(
            f"algorithm.batch_size: got {algorithm.batch_size}, but the data have only {len(prompts)} prompts"
        )
    return prompts, order


def arithmetic(algorithm: Sampling, microbatch_tokens: int) -> str:
    """How prompts become optimiser steps, in one line."""
    count = algorithm.batch_size * algorithm.responses
    updates = algorithm.epochs * algorithm.minibatches_a_pass
    return (
        f"{algorithm.steps} rollouts of {algorithm.batch_size} prompts × {algorithm.responses} responses = {count} "
        f"responses, in {algorithm.epochs} epochs × {algorithm.minibatches_a_pass} minibatches of "
        f"{count // algorithm.minibatches_a_pass}: {algorithm.steps * updates} optimiser steps, in microbatches of at "
        f"most {microbatch_tokens} tokens"
    )
