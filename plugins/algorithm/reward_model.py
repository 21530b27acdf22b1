"""The reward model: learn what people prefer from their rankings of K responses."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from rlhf_core.contracts.algorithm import Loss
from rlhf_core.contracts.data import Demonstration
from rlhf_core.contracts.evaluator import Subject, measure
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import at_least, one_of
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, per_step
from rlhf_core.run import Run

from ..reward.learned import ModelScorer
from .pairwise import RankingLoss
from .rankings import Microbatch, Ranked, cut, pack, ranked, read_rankings
from .reward_start import demonstrations_or_none, started


@dataclass
class RewardModel:
    """K-wise reward modelling (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).

    loss = −E_prompt [ mean over its untied pairs of log σ(r(x, y_better) − r(x, y_worse)) ]; all pairs of a prompt are
    in one batch element. After training the bias is set so that demonstrations score 0 on average.
    """

    rlhf_api: ClassVar[int] = 1

    epochs: float = 1.0  # passes over the rankings
    batch_size: int = 12  # rankings (prompts) an optimiser step; with pairs=shuffled, pairs
    pairs: str = "ranking"  # ranking: all pairs of one together; shuffled: each apart, which overfits (Ouyang, §3.5)
    ties: str = "skip"  # skip: a tied pair says nothing; half: it is won half by each
    margin: str = "none"  # none, ratings (the difference of mean ratings; Llama 2, arXiv:2307.09288), or a number
    max_length: int = 256  # tokens of prompt and response; what is longer is cut at the end
    center_coef: float = 0.0  # weight of the mean squared score, which keeps scores near 0
    ranking_files: list[str] = field(default_factory=list)  # more rankings: results of rank stages, or JSON lines
    use_data: bool = True  # false: learn from ranking_files alone
    from_scratch: bool = False  # new random weights in the architecture of policy.path
    demonstrations: int = 512  # how many set the bias
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-3, weight_decay=0.1, warmup_steps=20))

    def setup(self, run: Run) -> nn.Module:
        """Start from the policy with a new head of std 1/√(d+1) (Stiennon et al. 2020, arXiv:2009.01325)."""
        at_least(1, algorithm__batch_size=self.batch_size, algorithm__max_length=self.max_length)
        one_of("algorithm.pairs", self.pairs, ("ranking", "shuffled"))
        self.run, self.ranking_loss = run, RankingLoss(self.margin, self.ties, self.center_coef)
        self.model = started(run.policy, self.from_scratch).to(run.device).train()
        self.model.reset_head(std=(self.model.head.in_features + 1) ** -0.5)
        self.scorer = ModelScorer(self.model, run.microbatch_tokens)
        self.anchors = demonstrations_or_none(run.data, self.demonstrations)
        self.rankings = self.read()
        self.order = Order(len(self.rankings), self.batch_size, run.seed, self.unit)
        return self.model

    def read(self) -> list[Ranked]:
        """The data's rankings for training and those in files, in tokens; every pair apart with ``pairs=shuffled``."""
        rows = list(self.run.data.rankings("train")) if self.use_data else []
        rows += read_rankings(self.ranking_files, self.run.data)
        found = list(ranked(rows, self.model.tokenizer, self.max_length))
        self.ranking_loss.check(found)
        if self.pairs == "ranking":
            return found
        return [pair for ranking in found for pair in ranking.pairs() if pair.informative or self.ties == "half"]

    @property
    def unit(self) -> str:
        """What is counted."""
        return "rankings" if self.pairs == "ranking" else "pairs"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of ``epochs`` passes over the rankings."""
        return self.order.steps(self.epochs)

    def arithmetic(self) -> str:
        """The batch arithmetic in one line."""
        responses = sum(len(ranking.responses) for ranking in self.rankings)
        passes = f"{len(self.rankings)} {self.unit} ({responses} responses) × {self.epochs:g} epochs"
        return f"{passes} {per_step(self.order, self.total_steps, self.run.microbatch_tokens)}"

    def collect(self, step: int) -> list[Ranked]:
        """The rankings of a step."""
        return [self.rankings[index] for index in self.order.batch(step)]

    def minibatches(self, batch: list[Ranked]) -> Iterable[list[Microbatch]]:
        """One optimiser step on the whole batch; a ranking is never cut apart."""
        denominator = max(1, self.ranking_loss.count(batch))
        yield [Microbatch(rankings, denominator) for rankings in cut(batch, self.run.microbatch_tokens)]

    def loss(self, microbatch: Microbatch) -> Loss:
        """The ranking loss of these prompts, over all prompts of the minibatch that say anything."""
        rankings = microbatch.rankings
        scores = self.model.last(pack(rankings, self.run.device))
        loss, accuracy = self.ranking_loss(scores, rankings)
        count = self.ranking_loss.count(rankings)
        return Loss(loss * (count / microbatch.denominator), {"loss": loss.detach(), "accuracy": accuracy}, count)

    def metrics(self, batch: list[Ranked]) -> dict[str, float]:
        """Nothing beside the averages."""
        return {}

    def evaluate(self, step: int) -> dict[str, float]:
        """What the evaluators measure of the model as a reward."""
        return measure(self.run.evaluators, Subject(scorer=self.scorer))

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

    def headline(self, metrics: dict[str, float]) -> str:
        """Agreement with held-out raters, beside what it can be compared with."""
        if "accuracy" not in metrics:
            return "no evaluator chosen; add evaluator=[ranking_accuracy]"
        known = [name for name in ("human", "sentiment", "length", "chance") if name in metrics]
        beside = ", ".join(f"{name} {metrics[name]:.3f}" for name in known)
        return f"agrees with raters on {metrics['accuracy']:.3f} of held-out pairs ({beside})"
