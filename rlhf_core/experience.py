"""What a policy-gradient step eats: sampled responses with log-probs, scores, values and advantages.

N packed tokens (prompts and responses), B sequences. Per-token values are 0 on prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Packed, offsets
from .contracts.data import Prompt
from .contracts.reward import Samples, score_with_parts
from .contracts.rollout import Rollout
from .language_model import LanguageModel
from .packing import within
from .text import decode, encode_prompt

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Scored:
    """B sampled responses and their scores.

    Attributes:
        samples: what was asked and answered.
        packed: prompt and response of each, in one row.
        mask: ``[N]`` bool, the tokens the policy chose.
        logprobs: ``[N]`` float32 (nats), as they were sampled.
        scores: ``[B]`` float32.
        cut: ``[B]`` bool, responses that reached the length limit.
        parts: ``[B]`` scores of each part of the reward, by its name.
        metrics: the mean of each part, and the share of responses that ended by themselves.
    """

    samples: Samples
    packed: Packed
    mask: Tensor
    logprobs: Tensor
    scores: Tensor
    cut: Tensor
    parts: Mapping[str, Tensor]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Experience:
    """B sampled sequences with advantages.

    Attributes:
        packed: prompt and response of each, in one row.
        mask: ``[N]`` bool, the tokens the policy chose.
        logprobs: ``[N]`` float32 (nats), under the policy that sampled them.
        values: ``[N]`` float32, the critic's.
        scores: ``[B]`` float32.
        advantages: ``[N]`` float32, not whitened.
        returns: ``[N]`` float32.
        kl: ``[N]`` float32, log-prob minus reference log-prob (nats).
    """

    packed: Packed
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    scores: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor

    def per_sequence(self, values: Tensor) -> Tensor:
        """``[B]`` sums of a ``[N]`` tensor over each sequence."""
        sums = values.new_zeros(len(self.packed.lengths))
        return sums.index_add_(0, self.packed.sequence, values)

    def select(self, indices: Sequence[int]) -> "Experience":
        """The sequences at ``indices``, in that order."""
        starts, device = self.packed.cu_seqlens.tolist(), self.mask.device
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in indices]).to(device)
        lengths = [starts[i + 1] - starts[i] for i in indices]
        prompts = tuple(self.packed.prompts[i] for i in indices) if self.packed.prompts else ()
        packed = Packed(self.packed.tokens[rows], offsets(lengths, device), self.mask[rows], prompts)
        return Experience(
            packed, self.mask[rows], self.logprobs[rows], self.values[rows],
            self.scores[torch.tensor(indices, device=device)], self.advantages[rows], self.returns[rows], self.kl[rows],
        )  # fmt: skip

    def statistics(self) -> dict[str, float]:
        """Reward, KL (nats a response), length (tokens), and how much of the returns the critic explains."""
        returns, values = self.returns[self.mask], self.values[self.mask]
        spread = float(returns.var(correction=0))
        return {
            "reward": float(self.scores.mean()),
            "reward_std": float(self.scores.std(correction=0)),
            "kl": float(self.per_sequence(self.kl).mean()),
            "length": float(self.per_sequence(self.mask.float()).mean()),
            "explained_variance": 1 - float((returns - values).var(correction=0)) / spread if spread else 0.0,
        }


def sample_and_score(run: "Run", model: LanguageModel, prompts: Sequence[Prompt], generator: torch.Generator) -> Scored:
    """One response to each prompt, scored by the run's reward."""
    ids = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    rollout = run.rollout.generate(model, ids, generator)
    texts = [decode(model.tokenizer, response) for response in rollout.responses]
    samples = Samples(prompts, texts, rollout.prompts, rollout.responses, rollout.stops, model.tokenizer)
    scores, parts = score_with_parts(run.reward, samples)
    packed, mask, logprobs = pack(rollout, run.device)
    cut = torch.tensor([stop == "length" for stop in rollout.stops], device=run.device)
    metrics = {f"reward/{name}": float(part.mean()) for name, part in parts.items()}
    metrics["eos_frac"] = 1 - float(cut.float().mean())
    return Scored(samples, packed, mask, logprobs, scores.float().to(run.device), cut, parts, metrics)


def pack(rollout: Rollout, device: torch.device) -> tuple[Packed, Tensor, Tensor]:
    """A rollout in one row: the packed tokens, ``mask`` and ``logprobs`` as ``Experience`` has them."""
    packed = Packed.answers(rollout.prompts, rollout.responses, device)
    mask = packed.predicted
    assert mask is not None
    logprobs = torch.zeros(len(mask))
    logprobs[mask.cpu()] = torch.cat([*rollout.logprobs, torch.zeros(0)])
    return packed, mask, logprobs.to(device)


def minibatches(
    experience: Experience, epochs: int, count: int, budget: int, generator: torch.Generator
) -> Iterator[tuple[list[Experience], int]]:
    """``epochs`` passes in new orders, each cut into ``count`` minibatches of as many sequences.

    Yields:
        The minibatch in pieces of at most ``budget`` tokens, and how many response tokens it holds.
    """
    lengths = experience.packed.lengths.tolist()
    size = len(lengths) // count
    for _ in range(epochs):
        order = torch.randperm(len(lengths), generator=generator).tolist()
        for start in range(0, size * count, size):
            chosen = experience.select(neighbours(order[start : start + size], experience.packed.prompts))
            pieces = [chosen.select(group) for group in within(chosen.packed.costs, budget)]
            yield pieces, sum(int(piece.mask.sum()) for piece in pieces)


def neighbours(order: list[int], prompts: Sequence[tuple[int, int]]) -> list[int]:
    """The same sequences with those of one prompt side by side, where they share it; else in their order."""
    first: dict[int, int] = {}
    for place, index in enumerate(order):
        first.setdefault(prompts[index][0] if prompts else index, place)
    return sorted(order, key=lambda index: first[prompts[index][0] if prompts else index])
