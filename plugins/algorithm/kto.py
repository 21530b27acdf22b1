"""Kahneman–Tversky optimisation: responses are desirable or not; none has to be paired.

R responses.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.batch import Packed
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.errors import at_least
from rlhf_core.packing import per_token

from .pairs import response_logprobs
from .preference import Preference
from .rankings import Ranked, cut, pack

DESIRABLE, UNDESIRABLE = 0.0, 1.0


@dataclass(frozen=True)
class Microbatch:
    """Labelled responses (their ranks are the labels); what their minibatch holds of each kind; its z."""

    rankings: list[Ranked]
    desirable: int
    undesirable: int
    z: Tensor


@dataclass
class KTO(Preference):
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8); a ranking's better half is desirable, its worse half not.

    loss = mean over responses of λ_D·(1 − σ(β·(r − z)))  where y is desirable,
                                  λ_U·(1 − σ(β·(z − r)))  where it is not;  r = log π(y|x)/π_ref(y|x),
    z = max(0, mean of log π(y′|x)/π_ref(y′|x) over mismatched pairs of the whole minibatch), without gradient: x with
    the responses y′ to the next ranking's prompt. What ties with a ranking's middle is left out.
    """

    rlhf_api: ClassVar[int] = 1

    beta: float = 0.1  # β
    desirable_weight: float = 1.0  # λ_D
    undesirable_weight: float = 1.0  # λ_U
    pairs: str = "all"  # all responses of a ranking but its middle, or best: its best and its worst

    def check(self) -> None:
        """As every preference algorithm, and the weights; a mismatch takes two rankings."""
        super().check()
        at_least(2, algorithm__batch_size=self.batch_size)
        at_least(0, algorithm__desirable_weight=self.desirable_weight)
        at_least(0, algorithm__undesirable_weight=self.undesirable_weight)

    def compared(self, ranking: Ranked) -> Ranked:
        """Labels in the place of ranks; what is in the middle has none."""
        ranking = super().compared(ranking)
        middle = median(ranking.ranks)
        kept = [place for place, rank in enumerate(ranking.ranks) if rank != middle]
        labels = tuple(DESIRABLE if ranking.ranks[place] < middle else UNDESIRABLE for place in kept)
        return Ranked(ranking.prompt, [ranking.responses[place] for place in kept], labels)

    def minibatches(self, batch: list[Ranked]) -> Iterable[list[Microbatch]]:
        """One optimiser step on the whole batch, all of it beside the same z."""
        labels = [label for ranking in batch for label in ranking.ranks]
        counts, z = (labels.count(DESIRABLE), labels.count(UNDESIRABLE)), self.reference_point(batch)
        yield [Microbatch(rankings, *counts, z) for rankings in cut(batch, self.run.microbatch_tokens)]

    def reference_point(self, batch: list[Ranked]) -> Tensor:
        """z: prompts with the responses to the next ranking's."""
        rows = [
            (ranking.prompt, response[: self.max_length - len(ranking.prompt)])
            for ranking, following in zip(batch, batch[1:] + batch[:1], strict=True)
            for response in following.responses
        ]
        packed = Packed.answers(*zip(*rows, strict=True), device=self.run.device)
        with torch.no_grad():
            ratios = per_token(self.ratios, packed, self.run.microbatch_tokens)
        return packed.per_sequence(ratios).mean().clamp(min=0)

    def ratios(self, packed: Packed) -> Tensor:
        """``[N]`` nats, log π/π_ref of each response's tokens."""
        return self.policy.logprobs(packed) - self.reference.logprobs(packed)

    def loss(self, part: Microbatch) -> Loss:
        """The responses' share of the minibatch's loss."""
        packed = pack(part.rankings, self.run.device)
        labels = torch.tensor([label for ranking in part.rankings for label in ranking.ranks], device=self.run.device)
        logprobs = response_logprobs(self.policy, packed)
        with torch.no_grad():
            reference = response_logprobs(self.reference, packed)
        wanted = labels == DESIRABLE
        ratios = logprobs - reference
        gains = torch.where(wanted, ratios - part.z, part.z - ratios)
        weights = torch.where(wanted, self.desirable_weight, self.undesirable_weight)
        loss = (weights * torch.sigmoid(-self.beta * gains)).mean()  # 1 − σ(x) = σ(−x)
        share, rewards = len(labels) / (part.desirable + part.undesirable), self.beta * ratios.detach()
        chosen = rewards[wanted].sum() / max(part.desirable, 1) / share  # a mean of those alone, over the minibatch
        rejected = rewards[~wanted].sum() / max(part.undesirable, 1) / share
        metrics = {
            "loss": loss.detach(), "chosen_reward": chosen, "rejected_reward": rejected,
            "reward_margin": chosen - rejected, "accuracy": ((gains.detach().sign() + 1) / 2).mean(), "z": part.z,
        }  # fmt: skip
        return Loss(loss * share, metrics, len(labels))
