"""No training: a policy's answers to held-out prompts, and what the evaluators say of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from rlhf_core.experience import Experience, Scored
from rlhf_core.held_out import HeldOut
from rlhf_core.optimizer import AdamW
from rlhf_core.run import Run

from .untrained import Untrained


@dataclass
class Evaluate(Untrained):
    """Answers to held-out prompts, scored by the run's reward where it has one, and measured by its evaluators.

    ``evaluator=[win_rate] evaluator.win_rate.against=CHECKPOINT`` sets another model's answers beside them.
    """

    rlhf_api: ClassVar[int] = 1

    eval_prompts: int = 256  # held-out prompts answered
    eval_split: str = "test"  # where they come from: train, validation or test
    optimizer: AdamW = field(default_factory=AdamW)  # unused: nothing is trained

    def setup(self, run: Run) -> nn.Module:
        """The policy and its answers."""
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()
        self.held_out = HeldOut(run, self.policy, self.eval_split, self.eval_prompts)
        return self.policy.model

    def arithmetic(self) -> str:
        """What is evaluated."""
        return f"{len(self.held_out.prompts)} held-out prompts, no training"

    def evaluate(self, step: int) -> dict[str, float]:
        """What is measured; the KL to itself is left out."""
        found = self.held_out.evaluate(step, observe)
        return {name: value for name, value in found.items() if name not in ("kl", "length_ratio")}

    def save(self, folder: Path) -> None:
        """The policy as it came."""
        self.policy.save(folder)

    def headline(self, metrics: dict[str, float]) -> str:
        """All that was measured."""
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.startswith("reward_gain"))


def observe(scored: Scored) -> Experience:
    """Answers beside themselves."""
    return Experience.of(scored, scored.logprobs)
