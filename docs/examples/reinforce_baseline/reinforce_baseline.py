"""REINFORCE with a baseline, written against the contract of algorithms and nothing else. B responses."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from rlhf_core.advantages import leave_one_out
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.experience import Scored, sample_and_score
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, within
from rlhf_core.run import Run


@dataclass
class ReinforceBaseline:
    """loss = −1/B Σ (r_i − mean of the others' r) · log π(y_i|x_i)  (Williams 1992; Kool et al. 2019)."""

    rlhf_api: ClassVar[int] = 1

    total_steps: int = 40  # rollouts, one optimiser step each
    batch_size: int = 64  # prompts a rollout, one response each
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-4, schedule="constant"))

    def setup(self, run: Run) -> nn.Module:
        """The policy, and the order of the prompts, which follows from the run's seed."""
        _ = run.reward  # says so where there is none: all scores would be 0
        self.run, self.policy, self.prompts = run, run.policy.language_model(run.data), run.data.prompts("train")
        self.policy.model.to(run.device).eval()  # no dropout: what is trained is what sampled
        self.order = Order(len(self.prompts), self.batch_size, run.seed, "prompts")
        return self.policy.model

    def collect(self, step: int) -> Scored:
        """Responses of the policy as it is now, with the reward's scores."""
        prompts = [self.prompts[index] for index in self.order.batch(step)]
        return sample_and_score(self.run, self.policy, prompts, self.run.generator("rollout", step))

    def minibatches(self, batch: Scored) -> Iterator[list[tuple[Scored, Tensor, int]]]:
        """The whole batch in pieces that fit memory: responses, their advantages, and how many the batch has."""
        advantages = leave_one_out(batch.scores, len(batch.scores))
        pieces = within(batch.packed.costs, self.run.microbatch_tokens)
        yield [(batch.select(chosen), advantages[chosen], len(advantages)) for chosen in pieces]

    def loss(self, piece: tuple[Scored, Tensor, int]) -> Loss:
        """The piece's share of the batch's loss."""
        scored, advantages, count = piece
        logprobs = self.policy.logprobs(scored.packed, self.run.rollout.temperature) * scored.mask
        return Loss(-(advantages * scored.packed.per_sequence(logprobs)).sum() / count)

    def metrics(self, batch: Scored) -> dict[str, float]:
        """The reward's mean, spread and parts."""
        return batch.metrics

    def save(self, folder: Path) -> None:
        """The policy as a plain transformers checkpoint."""
        self.policy.save(folder)
