"""A rollout engine: samples responses from the policy, and says how likely it was to choose them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from ..language_model import LanguageModel


@dataclass(frozen=True)
class Rollout:
    """B sampled responses.

    Attributes:
        prompts: tokens of each prompt.
        responses: tokens of each response; the end token is the last one where ``stops`` says ``eos``.
        logprobs: for each response a float32 ``[length]`` tensor, the log-probabilities (nats) with which its tokens
            were sampled, of the full distribution at the rollout's temperature.
        stops: ``eos`` or ``length``.
        chosen: for each response, which of its tokens the policy chose; others (a tool's answer, a user's turn) were
            put there, have log-prob 0 and are not trained on. Empty: all were chosen.
    """

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    logprobs: "Sequence[torch.Tensor]"
    stops: Sequence[str]
    chosen: Sequence[Sequence[bool]] = ()


@runtime_checkable
class RolloutEngine(Protocol):
    """Samples; ``temperature`` and ``top_p`` are read by the algorithm that trains on the samples."""

    temperature: float
    top_p: float

    def generate(
        self, model: "LanguageModel", prompts: Sequence[Sequence[int]], generator: "torch.Generator"
    ) -> Rollout:
        """One response to each prompt, drawn with ``generator`` alone: the same state gives the same responses.

        With several processes each answers a part of the prompts. An engine with ``draws_per_response``, the number of
        float64 uniform numbers that each response takes from the generator, samples what one process would.
        """
