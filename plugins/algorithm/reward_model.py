"""The reward model: learn what people prefer from their rankings of K responses."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_core import kernels
from rlhf_core.batch import Packed, offsets
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.contracts.data import Demonstration, Split
from rlhf_core.contracts.evaluator import Subject, measure
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError, at_least
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, per_step, spaced, within
from rlhf_core.run import Run
from rlhf_core.text import encode_prompt, encode_response

from ..reward.learned import ModelScorer

log = logging.getLogger("rlhf")


@dataclass(frozen=True)
class Ranked:
    """One ranking in tokens: a prompt, its responses, and their ranks (smaller is better)."""

    prompt: list[int]
    responses: list[list[int]]
    ranks: tuple[float, ...]

    @property
    def size(self) -> int:
        """Tokens; the prompt is there once."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def informative(self) -> bool:
        """Whether any two responses are not tied."""
        return len(set(self.ranks)) > 1


@dataclass(frozen=True)
class Microbatch:
    """Whole rankings, and how many informative ones their minibatch holds."""

    rankings: list[Ranked]
    denominator: int


@dataclass
class RewardModel:
    """K-wise reward modelling (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).

    loss = −E_prompt [ mean over its untied pairs of log σ(r(x, y_better) − r(x, y_worse)) ]; all pairs of a prompt are
    in one batch element. After training the bias is set so that demonstrations score 0 on average.
    """

    rlhf_api: ClassVar[int] = 1

    epochs: float = 1.0  # passes over the rankings
    batch_size: int = 12  # rankings (prompts) an optimiser step
    max_length: int = 256  # tokens of prompt and response; what is longer is cut at the end
    center_coef: float = 0.0  # weight of the mean squared score, which keeps scores near 0
    demonstrations: int = 512  # how many set the bias
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-3, weight_decay=0.1, warmup_steps=20))

    def setup(self, run: Run) -> nn.Module:
        """Start from the policy with a new head of std 1/√(d+1) (Stiennon et al. 2020, arXiv:2009.01325)."""
        at_least(1, algorithm__batch_size=self.batch_size, algorithm__max_length=self.max_length)
        self.run = run
        self.model = run.policy.scalar_model().to(run.device).train()
        self.model.reset_head(std=(self.model.head.in_features + 1) ** -0.5)
        self.scorer = ModelScorer(self.model, run.microbatch_tokens)
        self.anchors = self.demonstrations_or_none()
        self.rankings = self.read("train")
        self.order = Order(len(self.rankings), self.batch_size, run.seed, "rankings")
        return self.model

    def read(self, split: Split) -> list[Ranked]:
        """The rankings of a split in tokens."""
        rankings = []
        for row in self.run.data.rankings(split):
            prompt = encode_prompt(self.model.tokenizer, row.prompt)
            responses = [encode_response(self.model.tokenizer, response) for response in row.responses]
            if len(prompt) < self.max_length:  # else nothing of the responses would be left to tell them apart
                room = self.max_length - len(prompt)
                rankings.append(Ranked(prompt, [response[:room] for response in responses], row.ranks))
        return rankings

    @property
    def total_steps(self) -> int:
        """Optimiser steps of ``epochs`` passes over the rankings."""
        return max(1, round(self.epochs * len(self.rankings) / self.order.batch_size))

    def arithmetic(self) -> str:
        """The batch arithmetic in one line."""
        responses = sum(len(ranking.responses) for ranking in self.rankings)
        passes = f"{len(self.rankings)} rankings ({responses} responses) × {self.epochs:g} epochs"
        return f"{passes} {per_step(self.order, self.total_steps, self.run.microbatch_tokens)}"

    def collect(self, step: int) -> list[Ranked]:
        """The rankings of a step."""
        return [self.rankings[index] for index in self.order.batch(step)]

    def minibatches(self, batch: list[Ranked]) -> Iterable[list[Microbatch]]:
        """One optimiser step on the whole batch; a ranking is never cut apart."""
        denominator = max(1, sum(ranking.informative for ranking in batch))
        groups = within([ranking.size for ranking in batch], self.run.microbatch_tokens)
        yield [Microbatch([batch[index] for index in group], denominator) for group in groups]

    def loss(self, microbatch: Microbatch) -> Loss:
        """The ranking loss of these prompts, over all prompts of the minibatch that say anything."""
        rankings = microbatch.rankings
        pairs = [(ranking.prompt, response) for ranking in rankings for response in ranking.responses]
        packed = Packed.answers(*zip(*pairs, strict=True), device=self.run.device)
        ranks = torch.tensor([rank for ranking in rankings for rank in ranking.ranks], device=self.run.device)
        groups = offsets([len(ranking.responses) for ranking in rankings], self.run.device)
        scores = self.model.last(packed)
        loss, accuracy = kernels.ranking_loss(scores, groups, ranks, center_coef=self.center_coef)
        informative = sum(ranking.informative for ranking in rankings)
        share = loss * (informative / microbatch.denominator)
        return Loss(share, {"loss": loss.detach(), "accuracy": accuracy}, informative)

    def metrics(self, batch: list[Ranked]) -> dict[str, float]:
        """Nothing beside the averages."""
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """What the evaluators measure of the model as a reward."""
        subject = Subject(scorer=self.scorer)
        return measure(self.run.evaluators, subject)

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the parameters: the order of the data follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, folder: Path) -> None:
        """The model, its bias set so that demonstrations score 0 on average."""
        if self.anchors:
            self.model.bias += self.scores(self.anchors).mean()
        self.model.save(folder)

    def scores(self, rows: list[Demonstration]) -> Tensor:
        """``[B]`` scores of demonstrations."""
        return self.scorer.score(Samples([row.prompt for row in rows], [row.response for row in rows]))

    def demonstrations_or_none(self) -> list[Demonstration]:
        """Demonstrations of the whole split, by which the bias is set; none where the data have none."""
        try:
            return spaced(self.run.data.demonstrations("train"), self.demonstrations)
        except UserError as error:
            log.warning("the reward model's bias stays 0: %s", error)
            return []

    def headline(self, metrics: dict[str, float]) -> str:
        """Agreement with held-out raters, beside what it can be compared with."""
        if "accuracy" not in metrics:
            return "no evaluator chosen; add evaluator=[ranking_accuracy]"
        beside = ", ".join(
            f"{name} {metrics[name]:.3f}" for name in ("human", "sentiment", "length", "chance") if name in metrics
        )
        return f"agrees with raters on {metrics['accuracy']:.3f} of held-out pairs ({beside})"
