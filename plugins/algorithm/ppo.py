"""Proximal policy optimisation on a learned reward, as InstructGPT has it.

N packed tokens, B sequences.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.batch import following
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.errors import UserError, at_least
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.on_policy import Batch, Clipped
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, per_token
from rlhf_core.run import Run
from rlhf_core.text import encode_document

from .lm import Microbatch as Text
from .lm import microbatches as text_microbatches
from .lm import pieces


@dataclass
class PPO(Clipped):
    """PPO (Schulman et al. 2017, arXiv:1707.06347) for language models (Ouyang et al. 2022, arXiv:2203.02155, eq. 2).

    objective = E[ r(x, y) − β · log π(y|x)/π_ref(y|x) ] + γ_ptx · E[ log π(pretraining text) ],
    the first term by clipped ratios and GAE advantages, the KL as a per-token reward (or, ``kl_in=loss``, in the loss).
    """

    rlhf_api: ClassVar[int] = 1

    batch_size: int = 64  # prompts a rollout
    responses: int = 1  # responses a prompt
    epochs: int = 2  # passes over a rollout
    minibatches_a_pass: int = 2  # optimiser steps a pass
    gamma: float = 1.0  # discount a token
    lam: float = 0.95  # GAE's λ
    bootstrap: bool = False  # whether a response that was cut goes on, at the critic's value of where it stopped
    value_clip: float = 0.2  # values move no further than this from the old ones
    value_coef: float = 0.5  # weight of the value loss
    ptx_coef: float = 0.0  # γ_ptx, the weight of the pretraining loss
    ptx_batch: int = 32  # documents of pretraining text an optimiser step
    ptx_length: int = 256  # tokens; a longer document is cut into pieces
    critic_path: str | None = None  # what the critic starts from, as a rule the reward model; null: the policy
    freeze_critic: bool = False  # its values then stay what they were at the start: zero
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """A critic with a head of zeros, beside what every policy gradient has; the pretraining text."""
        at_least(1, algorithm__ptx_batch=self.ptx_batch)
        policy = super().setup(run)
        self.critic = run.policy.scalar_model(self.critic_path).to(run.device).eval()
        if self.critic.tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
            raise UserError(f"algorithm.critic_path: {self.critic_path} has another tokenizer than the policy")
        self.critic.reset_head(std=0.0)
        if self.freeze_critic:
            self.critic.requires_grad_(False)
        if self.ptx_coef:
            documents = (encode_document(self.policy.tokenizer, text) for text in run.data.text("train"))
            self.texts = [piece for tokens in documents for piece in pieces(tokens, self.ptx_length)]
            self.text_order = Order(len(self.texts), self.ptx_batch, run.seed + 1, "text")
        return nn.ModuleDict({"policy": policy, "critic": self.critic})

    def advantages(self, old: Experience, group: int) -> Experience:
        """GAE on the score at the end and −β·KL at every token."""
        with torch.no_grad():
            read = per_token(self.critic, old.packed, self.run.microbatch_tokens)
        values = following(read) * old.mask  # of the state in which each token was chosen
        beyond = read[old.packed.cu_seqlens[1:].long() - 1]  # of the state after a sequence's last token
        gae = kernels.shaped_gae(
            old.scores, values, old.packed.cu_seqlens, mask=old.mask, rewards=old.rewards,
            bootstrap=beyond * old.cut if self.bootstrap and old.cut is not None else None,
            logprobs=old.logprobs, ref_logprobs=old.ref_logprobs, gamma=self.gamma, lam=self.lam,
            kl_coef=self.reward_kl, kl_estimator=self.kl_estimator,
        )  # fmt: skip
        moments = (gae.mean, gae.var)
        return replace(old, values=values, advantages=gae.advantages, returns=gae.returns, moments=moments)

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate and the clipped value loss."""
        old = part.experience
        return kernels.ppo_loss(
            logprobs, old.logprobs, old.advantages, values=following(self.critic(old.packed)), old_values=old.values,
            returns=old.returns, value_clip=self.value_clip, value_coef=self.value_coef, denominator=part.tokens,
            **self.ratios(), **self.terms(entropy, old),
        )  # fmt: skip

    def minibatches(self, batch: Batch) -> Iterable[list[Microbatch | Text]]:
        """Pretraining text joins each minibatch of the rollout."""
        first = batch.step * self.epochs * self.minibatches_a_pass
        for update, parts in enumerate(super().minibatches(batch), first):
            yield [*parts, *self.text(update)]

    def text(self, update: int) -> Iterable[Text]:
        """The pretraining text of an optimiser step."""
        if self.ptx_coef:
            documents = [(self.texts[index], 1) for index in self.text_order.batch(update)]
            yield from text_microbatches(documents, self.run.microbatch_tokens, self.run.device)

    def loss(self, microbatch: Any) -> Loss:
        """Of sampled responses, or γ_ptx times the loss on pretraining text: gradients of both add up."""
        if not isinstance(microbatch, Text):
            return super().loss(microbatch)
        total = -(self.policy.logprobs(microbatch.packed) * microbatch.mask).sum()
        count = int(microbatch.mask.sum())
        return Loss(self.ptx_coef * total / microbatch.denominator, {"ptx_loss": total.detach() / count}, count)
