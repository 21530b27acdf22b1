"""What a policy-gradient step eats: sampled responses with log-probs, scores, values and advantages.

N packed tokens (prompts and responses), B sequences. Per-token values are 0 on prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .batch import Packed
from .contracts.data import Prompt
from .contracts.reward import Samples
from .contracts.rollout import Rollout
from .language_model import LanguageModel
from .packing import per_token, within
from .sampling import answered

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
        scores: ``[B]`` float32, of whole responses.
        cut: ``[B]`` bool, responses that reached the length limit.
        parts: ``[B]`` scores of each part of the reward, by its name.
        rewards: ``[N]`` float32, what the reward gives for steps on the way, at each step's last token; None: nothing.
        steps: ``[N]`` bool, those tokens; None as above.
    """

    samples: Samples
    packed: Packed
    mask: Tensor
    logprobs: Tensor
    scores: Tensor
    cut: Tensor
    parts: Mapping[str, Tensor]
    rewards: Tensor | None = None
    steps: Tensor | None = None

    @property
    def totals(self) -> Tensor:
        """``[B]`` scores and the rewards of all steps."""
        return self.scores if self.rewards is None else self.scores + self.packed.per_sequence(self.rewards)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean and spread of the totals, the mean of each part, and the share of responses that ended by themselves."""
        parts = {f"reward/{name}": float(part.mean()) for name, part in self.parts.items()}
        whole = {"reward": float(self.totals.mean()), "reward_std": float(self.totals.std(correction=0))}
        return whole | parts | {"eos_frac": 1 - float(self.cut.float().mean())}

    def select(self, indices: Sequence[int]) -> "Scored":
        """The responses at ``indices``, in that order."""
        rows, packed = self.packed.select(indices)
        chosen = torch.tensor(indices, dtype=torch.long, device=self.mask.device)
        tokens = taken(self, ("mask", "logprobs", "rewards", "steps"), rows)
        parts = {name: part[chosen.to(part.device)] for name, part in self.parts.items()}
        samples, scores, cut = self.samples.select(indices), self.scores[chosen], self.cut[chosen]
        return replace(self, samples=samples, packed=packed, scores=scores, cut=cut, parts=parts, **tokens)


@dataclass(frozen=True)
class Experience:
    """B sampled sequences with advantages.

    Attributes:
        packed: prompt and response of each, in one row.
        mask: ``[N]`` bool, the tokens the policy chose.
        logprobs: ``[N]`` float32 (nats), under the policy that sampled them.
        ref_logprobs: ``[N]`` float32 (nats), under the reference.
        scores: ``[B]`` float32, of whole responses.
        values: ``[N]`` float32, the critic's; 0 without one.
        advantages: ``[N]`` float32, not whitened.
        returns: ``[N]`` float32, what the critic should have said.
        moments: mean and variance of all the rollout's advantages, by which the loss whitens them; None: it does not.
        importance: ``[N]`` float32 weights of tokens whose engine computed other log-probs than training does.
        rewards: ``[N]`` float32 rewards of steps on the way, as ``Scored`` has them.
        steps: ``[N]`` bool.
        cut: ``[B]`` bool, responses that reached the length limit; None: not known.
    """

    packed: Packed
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    scores: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    moments: tuple[Tensor, Tensor] | None = None
    importance: Tensor | None = None
    rewards: Tensor | None = None
    steps: Tensor | None = None
    cut: Tensor | None = None

    @staticmethod
    def of(scored: Scored, ref_logprobs: Tensor) -> "Experience":
        """Sampled sequences beside the reference; advantages are still 0."""
        zeros = torch.zeros_like(scored.logprobs)
        return Experience(
            scored.packed, scored.mask, scored.logprobs, ref_logprobs * scored.mask, scored.scores, zeros, zeros, zeros,
            rewards=scored.rewards, steps=scored.steps, cut=scored.cut,
        )  # fmt: skip

    @property
    def kl(self) -> Tensor:
        """``[N]`` float32, log-prob minus reference log-prob (nats): k1 of each token."""
        return (self.logprobs - self.ref_logprobs) * self.mask

    @property
    def totals(self) -> Tensor:
        """``[B]`` scores and the rewards of all steps."""
        return self.scores if self.rewards is None else self.scores + self.per_sequence(self.rewards)

    def per_sequence(self, values: Tensor) -> Tensor:
        """``[B]`` sums of a ``[N]`` tensor over each sequence."""
        return self.packed.per_sequence(values)

    def select(self, indices: Sequence[int]) -> "Experience":
        """The sequences at ``indices``, in that order."""
        rows, packed = self.packed.select(indices)
        names = (
            "mask",
            "logprobs",
            "ref_logprobs",
            "values",
            "advantages",
            "returns",
            "importance",
            "rewards",
            "steps",
        )
        tokens = taken(self, names, rows)
        chosen = torch.tensor(indices, dtype=torch.long, device=self.mask.device)
        cut = None if self.cut is None else self.cut[chosen]
        return replace(self, packed=packed, scores=self.scores[chosen], cut=cut, **tokens)

    def statistics(self) -> dict[str, float]:
        """KL (nats a response), length (tokens), and how much of the returns the critic explains."""
        returns, values = self.returns[self.mask], self.values[self.mask]
        spread = float(returns.var(correction=0)) if len(returns) else 0.0
        found = {
            "kl": float(self.per_sequence(self.kl).mean()),
            "length": float(self.per_sequence(self.mask.float()).mean()),
        }
        if bool(values.any()) or bool(returns.any()):
            found["explained_variance"] = 1 - float((returns - values).var(correction=0)) / spread if spread else 0.0
        if self.importance is not None:
            found["importance_mean"] = float(self.importance[self.mask].mean())
        return found


def taken(owner: object, names: Sequence[str], rows: Tensor) -> dict[str, Any]:
    """The ``[N]`` tensors of these names at ``rows``; None where there is none."""
    return {name: None if (values := getattr(owner, name)) is None else values[rows] for name in names}


def sample_and_score(run: "Run", model: LanguageModel, prompts: Sequence[Prompt], generator: torch.Generator) -> Scored:
    """One response to each prompt, scored by the run's reward; by 0 where the run has none."""
    found = answered(run, model, prompts, generator)
    packed, mask, logprobs = pack(found.rollout, run.device)
    cut = torch.tensor([stop == "length" for stop in found.rollout.stops], dtype=torch.bool, device=run.device)
    rewards, steps = pack_steps(found.steps, packed, found.samples)
    scores = found.scores.to(run.device)
    return Scored(found.samples, packed, mask, logprobs, scores, cut, found.parts, rewards, steps)


def logprobs_of(run: "Run", model: LanguageModel, scored: Scored) -> Tensor:
    """``[N]`` log-probs under ``model`` of what was sampled, at its temperature, without gradient; 0 elsewhere."""
    temperature = run.rollout.temperature
    with torch.no_grad():
        found = per_token(lambda part: model.logprobs(part, temperature), scored.packed, run.microbatch_tokens)
    return found * scored.mask


def joined(parts: Sequence[Scored]) -> Scored:
    """The responses of all parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]

    def together(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    tokens = {name: together(name) for name in ("mask", "logprobs", "scores", "cut", "rewards", "steps")}
    scores = {name: torch.cat([part.parts[name] for part in parts]) for name in parts[0].parts}
    samples = Samples.joined([part.samples for part in parts])
    return replace(
        parts[0], samples=samples, packed=Packed.joined([part.packed for part in parts]), parts=scores, **tokens
    )


def pack(rollout: Rollout, device: torch.device) -> tuple[Packed, Tensor, Tensor]:
    """A rollout in one row: the packed tokens, ``mask`` and ``logprobs`` as ``Experience`` has them."""
    packed = Packed.answers(rollout.prompts, rollout.responses, device)
    assert packed.predicted is not None
    responses = packed.predicted.cpu()
    logprobs, mask = torch.zeros(len(responses)), responses.clone()
    logprobs[responses] = torch.cat([*rollout.logprobs, torch.zeros(0)])
    if rollout.chosen:
        mask[responses] = torch.tensor([flag for row in rollout.chosen for flag in row], dtype=torch.bool)
    mask = mask.to(device)
    return replace(packed, predicted=mask), mask, torch.where(mask, logprobs.to(device), 0.0)


def pack_steps(
    steps: Sequence[Sequence[tuple[int, float]]] | None, packed: Packed, samples: Samples
) -> tuple[Tensor | None, Tensor | None]:
    """``[N]`` rewards of steps at their last tokens that the policy chose, and where those are."""
    if steps is None:
        return None, None
    rewards, there = torch.zeros(len(packed.tokens)), torch.zeros(len(packed.tokens), dtype=torch.bool)
    starts, chosen = packed.cu_seqlens.tolist(), (there | True if packed.predicted is None else packed.predicted.cpu())
    for start, prompt, given in zip(starts, samples.prompt_ids, steps, strict=False):
        first = start + len(prompt)
        for place, reward in given:
            last = next((token for token in range(first + place, first - 1, -1) if chosen[token]), first + place)
            rewards[last] += reward
            there[last] = True
    return rewards.to(packed.tokens.device), there.to(packed.tokens.device)


@dataclass(frozen=True)
class Microbatch:
    """Some sequences of a rollout, and what their minibatch holds.

    Attributes:
        experience: the sequences.
        tokens: how many tokens of the minibatch the policy chose; 1 where there is none, for losses divide by it.
        sequences: how many of its sequences have such a token; 1 as above.
        groups: how many groups of sequences it has that are never cut apart.
        first: whether the minibatch is the rollout's first, on which no ratio has moved yet.
    """

    experience: Experience
    tokens: int
    sequences: int
    groups: int
    first: bool

    def averaged(self, metrics: Mapping[str, Tensor], shares: Sequence[str]) -> "dict[str, Tensor | float]":
        """Metrics as means over this piece's tokens; ``shares`` are shares of the minibatch's, which add up."""
        scale = self.tokens / max(int(self.experience.mask.sum()), 1)
        return {name: value * scale if name in shares else value for name, value in metrics.items()}


def minibatches(
    experience: Experience, epochs: int, count: int, budget: int, generator: torch.Generator, group: int = 1
) -> Iterator[list[Microbatch]]:
    """``epochs`` passes in new orders, each cut into ``count`` minibatches of as many groups of ``group`` sequences.

    A minibatch comes in pieces of at most ``budget`` tokens, a group of neighbours never cut apart.
    """
    groups = len(experience.scores) // group
    size, first = max(1, groups // count), True
    for _ in range(epochs):
        order = torch.randperm(groups, generator=generator).tolist()
        for start in range(0, min(size * count, groups), size):
            places = sequences(order[start : start + size], group)
            chosen = experience.select(neighbours(places, experience.packed.prompts))
            costs = [sum(chosen.packed.costs[at : at + group]) for at in range(0, len(places), group)]
            pieces = [chosen.select(sequences(part, group)) for part in within(costs, budget)]
            counts = chosen.per_sequence(chosen.mask.float())
            tokens, answered = max(int(counts.sum()), 1), max(int((counts > 0).sum()), 1)
            yield [Microbatch(piece, tokens, answered, len(costs), first) for piece in pieces]
            first = False


def sequences(groups: Sequence[int], group: int) -> list[int]:
    """The sequences of groups."""
    return [group * index + place for index in groups for place in range(group)]


def neighbours(order: list[int], prompts: Sequence[tuple[int, int]]) -> list[int]:
    """The same sequences with those of one prompt side by side, where they share it; else in their order."""
    first: dict[int, int] = {}
    for place, index in enumerate(order):
        first.setdefault(prompts[index][0] if prompts else index, place)
    return sorted(order, key=lambda index: first[prompts[index][0] if prompts else index])
