"""What algorithms share that learn from their own samples: sample, score, compare with a reference, update.

N packed tokens, B sequences in groups of ``responses`` neighbours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .contracts.algorithm import Loss
from .errors import UserError, at_least, one_of
from .experience import Experience, Microbatch, Scored, logprobs_of, minibatches, sample_and_score
from .held_out import HeldOut
from .kernels.kl import ESTIMATORS
from .kl_controller import KLController
from .optimizer import AdamW
from .packing import Order
from .run import Run


@dataclass(frozen=True)
class Batch:
    """One rollout with its advantages."""

    experience: Experience
    metrics: dict[str, float]
    step: int


@dataclass
class OnPolicy:
    """Everything but ``advantages`` and ``objective``, which make an algorithm of it."""

    shares: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", "kl")
    """metrics of ``objective`` that are shares of the minibatch's; others are means over the microbatch's tokens"""
    kl_places: ClassVar[tuple[str, ...]] = ("reward", "loss")
    """where ``kl_in`` may be"""
    grouped: ClassVar[bool] = False
    """whether responses are compared with the others to their prompt, which takes two"""
    weighted: ClassVar[bool] = True
    """whether ``objective`` weights tokens, which is where importance weights enter"""

    steps: int = 40  # rollouts
    batch_size: int = 16  # prompts a rollout
    responses: int = 4  # responses a prompt
    epochs: int = 1  # passes over a rollout
    minibatches_a_pass: int = 1  # optimiser steps a pass
    kl_coef: float = 0.05  # β, the weight of the KL to the start policy, on nats
    kl_in: str = "reward"  # where it is: reward (taken from the reward) or loss (added to the loss)
    kl_estimator: str = "k1"  # how a token's KL is estimated: k1, k2 or k3
    kl_target: float | None = None  # nats a response that β is steered towards; null keeps β fixed
    kl_horizon: int = 1000  # responses over which β follows
    entropy_coef: float = 0.0  # weight of the entropy bonus
    score_clip: float | None = None  # scores are clipped to ± this
    missing_eos_penalty: float = 0.0  # taken from the score of a response that was cut
    importance_cap: float | None = None  # truncates the weights that correct for the rollout's log-probs; null: none
    eval_prompts: int = 256  # held-out prompts answered at each evaluation
    eval_split: str = "test"  # where they come from: train, validation or test
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, eps=1e-5, warmup_steps=2, schedule="constant"))

    def advantages(self, old: Experience, group: int) -> Experience:
        """``old`` with its advantages; ``group`` neighbours answer the same prompt."""
        raise NotImplementedError(f"{type(self).__name__} has to define advantages()")

    def objective(self, logprobs: Tensor, entropy: Tensor, part: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The microbatch's share of the loss, and its metrics, from ``[N]`` log-probs and entropies of the policy."""
        raise NotImplementedError(f"{type(self).__name__} has to define objective()")

    def setup(self, run: Run) -> nn.Module:
        """Policy, frozen reference, prompts, and the start's answers to held-out ones."""
        self.run = run
        check(self, run)
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()  # no dropout: old and new log-probs are of one network
        self.reference = self.policy.frozen()
        self.kl = KLController(self.kl_coef, self.kl_target, self.kl_horizon)
        self.prompts = list(run.data.prompts("train"))
        self.order = Order(len(self.prompts), self.batch_size, run.seed, "prompts")
        if len(self.prompts) < self.batch_size:
            raise UserError(
                f"algorithm.batch_size: got {self.batch_size}, but the data have only {len(self.prompts)} prompts"
            )
        self.held_out = HeldOut(run, self.policy, self.eval_split, self.eval_prompts)
        return self.policy.model

    @property
    def total_steps(self) -> int:
        """Rollouts."""
        return self.steps

    def arithmetic(self) -> str:
        """How prompts become optimiser steps, in one line."""
        count, updates = self.batch_size * self.responses, self.epochs * self.minibatches_a_pass
        return (
            f"{self.steps} rollouts of {self.batch_size} prompts × {self.responses} responses = {count} responses, "
            f"in {self.epochs} epochs × {self.minibatches_a_pass} minibatches of {count // self.minibatches_a_pass}: "
            f"{self.steps * updates} optimiser steps, in microbatches of at most {self.run.microbatch_tokens} tokens"
        )

    def collect(self, step: int) -> Batch:
        """Sample, score, and turn scores into advantages."""
        scored = self.sample(step)
        experience = self.experience(scored, self.responses)
        metrics = experience.statistics() | scored.metrics | {"kl_coef": self.kl.coef}
        self.kl.update(metrics["kl"], episodes=len(scored.scores))
        return Batch(experience, metrics, step)

    def sample(self, step: int) -> Scored:
        """The responses of a step, those to one prompt side by side."""
        prompts = [self.prompts[index] for index in self.order.batch(step) for _ in range(self.responses)]
        return sample_and_score(self.run, self.policy, prompts, self.run.generator("rollout", step))

    def experience(self, scored: Scored, group: int = 1) -> Experience:
        """Sampled responses beside the reference, their scores shaped, with advantages."""
        reference = logprobs_of(self.run, self.reference, scored)
        scores = scored.scores - self.missing_eos_penalty * scored.cut
        if self.score_clip is not None:
            scores = scores.clamp(-self.score_clip, self.score_clip)
        old = replace(Experience.of(scored, reference), scores=scores)
        if self.importance_cap is not None:  # what trains has other log-probs than what sampled (arXiv:2505.24034)
            trained = logprobs_of(self.run, self.policy, scored)
            weights = (trained - scored.logprobs).exp().clamp(max=self.importance_cap) * scored.mask
            old = replace(old, logprobs=trained, importance=weights)
        return self.advantages(old, group)

    @property
    def reward_kl(self) -> float:
        """β where the KL is in the reward, else 0."""
        return self.kl.coef if self.kl_in == "reward" else 0.0

    def minibatches(self, batch: Batch) -> Iterable[list[Any]]:
        """``epochs`` passes in new orders, each cut into minibatches."""
        generator = self.run.generator("minibatches", batch.step)
        budget = self.run.microbatch_tokens
        return minibatches(batch.experience, self.epochs, self.minibatches_a_pass, budget, generator)

    def loss(self, microbatch: Microbatch) -> Loss:
        """The objective of some sequences, with the policy's log-probs as they are now."""
        old = microbatch.experience
        logprobs, entropy = self.policy.logprobs_and_entropy(old.packed, self.run.rollout.temperature)
        if not self.entropy_coef:
            entropy = entropy.detach()  # only logged: no gradient through [N, V] for nothing
        loss, metrics = self.objective(logprobs, entropy, microbatch)
        shown = microbatch.averaged(metrics, self.shares)
        if "kl" in shown:  # the rollout's, in nats a response, is logged by that name
            shown["kl_loss"] = shown.pop("kl")
        if self.kl_in == "reward":
            shown.pop("kl_loss", None)
        first = {"first_ratio_max": metrics["ratio_max"]} if microbatch.first and "ratio_max" in metrics else {}
        return Loss(loss, shown | first, int(old.mask.sum()))

    def terms(self, entropy: Tensor, old: Experience) -> dict[str, Any]:
        """What the losses of ``rlhf_core.kernels`` take beside log-probs and advantages."""
        in_loss = self.kl_in == "loss"
        return {
            "mask": old.mask,
            "whiten": old.moments,
            "entropy": entropy,
            "entropy_coef": self.entropy_coef,
            "ref_logprobs": old.ref_logprobs if in_loss else None,
            "kl_coef": self.kl.coef if in_loss else 0.0,
            "kl_estimator": self.kl_estimator,
            "importance": old.importance,
            "cu_seqlens": old.packed.cu_seqlens,
        }

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What the rollout was like."""
        return batch.metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """Reward, KL and length on held-out prompts, and what independent judges say of them."""
        return self.held_out.evaluate(step, self.experience)

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


@dataclass
class Clipped(OnPolicy):
    """An algorithm whose ratio ρ = π/π_old is clipped."""

    clip: float = 0.2  # ratio clip ε, both sides
    clip_high: float | None = None  # the upper side, where it is another (clip-higher, arXiv:2503.14476)
    dual_clip: float | None = None  # c > 1: with A < 0 the objective is at least c·A (arXiv:1912.09729); null: no bound

    def ratios(self) -> dict[str, Any]:
        """How ρ is bounded, as the losses of ``rlhf_core.kernels`` take it."""
        upper = self.clip if self.clip_high is None else self.clip_high
        return {"clip_low": self.clip, "clip_high": upper, "dual_clip": self.dual_clip}


def check(algorithm: OnPolicy, run: Run) -> None:
    """Refuse what would train on something else than was sampled, and numbers that do not go together."""
    for name in ("steps", "batch_size", "responses", "epochs", "minibatches_a_pass"):
        at_least(1, **{f"algorithm__{name}": getattr(algorithm, name)})
    if algorithm.grouped and algorithm.responses == 1:
        raise UserError("algorithm.responses: got 1, but a group needs at least 2 to be compared")
    _ = run.reward  # says so where there is none
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
    for name, choices in {"kl_in": algorithm.kl_places, "kl_estimator": ESTIMATORS}.items():
        one_of(f"algorithm.{name}", getattr(algorithm, name), choices)
    if algorithm.kl_in == "loss" and algorithm.kl_estimator == "k1" and algorithm.kl_coef:
        raise UserError(
            "algorithm.kl_estimator: k1 in the loss has a gradient of 0 in expectation; take k2 or k3, or "
            "algorithm.kl_in=reward"
        )
    if algorithm.importance_cap is not None and not algorithm.weighted:
        name = type(algorithm).__name__
        raise UserError(f"algorithm.importance_cap: {name} weights no tokens: it would change nothing; leave it null")
    if algorithm.importance_cap is not None and algorithm.importance_cap <= 0:
        raise UserError(f"algorithm.importance_cap: got {algorithm.importance_cap}, expected more than 0, or null")
