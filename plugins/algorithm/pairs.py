"""Responses that people ranked: their log-probs, and the pairs they make.

N packed tokens, R responses, P pairs of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_core.batch import Packed
from rlhf_core.language_model import LanguageModel

from .rankings import Ranked, pack


@dataclass(frozen=True)
class Pairs:
    """P pairs: ``[P]`` log-probs (nats) of whole responses without their prompts, and ``[P]`` tokens of each.

    The reference's log-probs are without gradient, and None where the algorithm has no reference.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @staticmethod
    def of(rankings: list[Ranked], policy: LanguageModel, reference: LanguageModel | None) -> "Pairs":
        """All untied pairs of rankings, each response's log-prob computed once."""
        packed = pack(rankings, policy.device)
        logprobs, lengths = response_logprobs(policy, packed), response_lengths(packed)
        places, first = [], 0
        for ranking in rankings:
            places += [(first + better, first + worse) for better, worse in untied(ranking)]
            first += len(ranking.responses)
        better, worse = torch.tensor(places, dtype=torch.long, device=policy.device).T
        ref_chosen = ref_rejected = None
        if reference is not None:
            with torch.no_grad():
                known = response_logprobs(reference, packed)
            ref_chosen, ref_rejected = known[better], known[worse]
        return Pairs(logprobs[better], logprobs[worse], ref_chosen, ref_rejected, lengths[better], lengths[worse])

    @property
    def imitation(self) -> Tensor:
        """−log-prob of the better responses (nats), a mean over pairs of means over tokens."""
        return -(self.chosen / self.chosen_lengths).mean()

    def __len__(self) -> int:
        """P."""
        return len(self.chosen)


def untied(ranking: Ranked) -> list[tuple[int, int]]:
    """All pairs (better, worse) of a ranking's responses."""
    ranks = ranking.ranks
    return [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]


def best_and_worst(ranking: Ranked) -> Ranked:
    """The first of the best responses, and the first of the worst."""
    kept = [ranking.ranks.index(end(ranking.ranks)) for end in (min, max)]
    return Ranked(ranking.prompt, [ranking.responses[i] for i in kept], tuple(ranking.ranks[i] for i in kept))


def response_logprobs(model: LanguageModel, packed: Packed) -> Tensor:
    """``[R]`` float32 log-probs (nats) of responses, summed over their tokens, the end token among them."""
    return packed.per_sequence(model.logprobs(packed))


def response_lengths(packed: Packed) -> Tensor:
    """``[R]`` float32, how many tokens each response has, the end token counted."""
    return packed.per_sequence(packed.predicted.float())
