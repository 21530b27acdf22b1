"""What preference algorithms share: people's rankings, log-probs of ranked responses, and a frozen reference.

R responses, P pairs of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlhf_core.contracts.algorithm import Loss
from rlhf_core.contracts.data import Split, split_named
from rlhf_core.errors import UserError, at_least, one_of
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, per_step, spaced
from rlhf_core.run import Run
from rlhf_core.trainer import Averages

from .answers import Answers
from .pairs import Pairs, best_and_worst, untied
from .rankings import Microbatch, Ranked, cut, ranked


@dataclass
class Preference:
    """Everything but ``objective``, which makes an algorithm of it.

    A ranking of K responses is one batch element: their log-probs are computed once, the prompt shared, and all untied
    pairs are compared. The loss is a mean over the pairs of the whole minibatch.
    """

    epochs: float = 1.0  # passes over the rankings
    batch_size: int = 16  # rankings (prompts) an optimiser step
    pairs: str = "all"  # all untied pairs of a ranking, or best: its best against its worst
    max_length: int = 256  # tokens of prompt and response; what is longer is cut at the end
    beta: float = 0.1  # β
    eval_examples: int = 128  # held-out rankings measured
    eval_prompts: int = 256  # held-out prompts answered, where the run has a rollout
    eval_split: str = "test"  # where both come from: train, validation or test
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=5e-4, warmup_steps=10))

    def objective(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of pairs, and means of what is logged."""
        raise NotImplementedError(f"{type(self).__name__} has to define objective()")

    @property
    def referenced(self) -> bool:
        """Whether the objective compares with the policy as it started."""
        return True

    def setup(self, run: Run) -> nn.Module:
        """Policy, frozen reference, rankings in tokens, and the start's answers to held-out prompts."""
        self.check()
        self.run = run
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()  # no dropout: policy and reference differ by what was learned alone
        self.policy.fit(self.max_length, "algorithm.max_length")
        self.reference = self.policy.frozen() if self.referenced else None
        self.rankings = self.read("train")
        self.held_out = spaced(self.read(split_named(self.eval_split, "algorithm.eval_split")), self.eval_examples)
        self.order = Order(len(self.rankings), self.batch_size, run.seed, "rankings with a preference")
        self.answers = Answers.of(run, self.policy, self.eval_split, self.eval_prompts, self.reference)
        return self.policy.model

    def check(self) -> None:
        """Refuse numbers and words that make no sense."""
        at_least(1, algorithm__batch_size=self.batch_size, algorithm__eval_examples=self.eval_examples)
        at_least(2, algorithm__max_length=self.max_length)
        one_of("algorithm.pairs", self.pairs, ("all", "best"))
        if self.beta <= 0:
            raise UserError(f"algorithm.beta: got {self.beta:g}, expected more than 0")

    def read(self, split: Split) -> list[Ranked]:
        """The rankings of a split in tokens; those without a preference are left out."""
        rankings = ranked(self.run.data.rankings(split), self.policy.tokenizer, self.max_length)
        return [self.compared(ranking) for ranking in rankings if ranking.informative]

    def compared(self, ranking: Ranked) -> Ranked:
        """The responses that are learned from."""
        return ranking if self.pairs == "all" else best_and_worst(ranking)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of ``epochs`` passes over the rankings."""
        return self.order.steps(self.epochs)

    def arithmetic(self) -> str:
        """The batch arithmetic in one line."""
        responses = sum(len(ranking.responses) for ranking in self.rankings)
        passes = f"{len(self.rankings)} rankings ({responses} responses) × {self.epochs:g} epochs"
        return f"{passes} {per_step(self.order, self.total_steps, self.run.microbatch_tokens)}"

    def collect(self, step: int) -> list[Ranked]:
        """The rankings of a step."""
        return [self.rankings[index] for index in self.order.batch(step)]

    def minibatches(self, batch: list[Ranked]) -> Iterable[list[Any]]:
        """One optimiser step on the whole batch."""
        count = sum(len(untied(ranking)) for ranking in batch)
        yield [Microbatch(rankings, count) for rankings in cut(batch, self.run.microbatch_tokens)]

    def loss(self, microbatch: Microbatch) -> Loss:
        """The objective of these rankings' pairs, over the number of pairs in the whole minibatch."""
        pairs = Pairs.of(microbatch.rankings, self.policy, self.reference)
        loss, metrics = self.objective(pairs)
        share = loss * (len(pairs) / microbatch.denominator)
        means = {"chosen_logprob": pairs.chosen.detach().mean(), "rejected_logprob": pairs.rejected.detach().mean()}
        return Loss(share, {"loss": loss.detach(), **metrics, **means}, len(pairs))

    def metrics(self, batch: list[Ranked]) -> dict[str, float]:
        """Nothing beside the averages."""
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """The loss and its metrics on held-out rankings; the policy's answers beside the start's."""
        averages = Averages()
        with self.policy.evaluating():
            for microbatches in self.minibatches(self.held_out) if self.held_out else ():
                for microbatch in microbatches:
                    averages.add(self.loss(microbatch))
        return averages.result() | (self.answers.evaluate(step) if self.answers else {})

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the parameters: the order of the data follows from the step, the reference is the start."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, folder: Path) -> None:
        """The policy."""
        self.policy.save(folder)

    def headline(self, metrics: dict[str, float]) -> str:
        """Agreement with held-out raters, and what changed in the answers."""
        agreement = f"agrees with raters on {metrics['accuracy']:.3f} of held-out pairs" if self.held_out else ""
        changed = self.answers.headline(metrics) if self.answers else ""
        return "; ".join(filter(None, (agreement, changed))) or "nothing measured: the data hold nothing out"


def check_smoothing(share: float) -> None:
    """Refuse a share of wrong labels from which nothing could be learned."""
    if not 0 <= share < 0.5:
        raise UserError(f"algorithm.label_smoothing: got {share:g}, expected 0 to below 0.5")
