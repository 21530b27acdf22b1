"""Prompts answered and scored: each rank answers a part of them, and all get the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ranks
from .contracts.data import Prompt
from .contracts.reward import Samples, score_with_parts, step_rewards
from .contracts.rollout import Rollout, RolloutEngine
from .language_model import LanguageModel
from .text import decode, encode_prompt

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Answers:
    """B responses.

    Attributes:
        samples: what was asked and answered.
        rollout: the same as it was sampled.
        scores: ``[B]`` float32, of whole responses; 0 where there is no reward.
        parts: ``[B]`` scores of each part of the reward, by its name.
        steps: each response's rewards on the way, as ``Reward`` gives them; None: it gives none.
    """

    samples: Samples
    rollout: Rollout
    scores: Tensor
    parts: Mapping[str, Tensor]
    steps: Sequence[Sequence[tuple[int, float]]] | None

    @staticmethod
    def joined(parts: "Sequence[Answers]") -> "Answers":
        """One part after the other."""
        first = parts[0]
        return Answers(
            Samples.joined([part.samples for part in parts]),
            Rollout(**{name: _chained(parts, name) for name in _LISTS}),
            torch.cat([part.scores for part in parts]),
            {name: torch.cat([part.parts[name] for part in parts]) for name in first.parts},
            None if first.steps is None else list(chain.from_iterable(part.steps or () for part in parts)),
        )


_LISTS = ("prompts", "responses", "logprobs", "stops", "chosen")


def _chained(parts: Sequence[Answers], name: str) -> list[Any]:
    return [value for part in parts for value in getattr(part.rollout, name)]


def answered(run: "Run", model: LanguageModel, prompts: Sequence[Prompt], generator: torch.Generator) -> Answers:
    """One response to each prompt, scored by the run's reward."""
    ids = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    if ranks.count() == 1:
        return scored(run, model, prompts, run.rollout.generate(model, ids, generator))
    own = ranks.share(ids)
    numbers = part_of(generator, run.rollout, own.start, len(ids))
    part = None  # of a rank with nothing to do
    if own:
        rollout = run.rollout.generate(model, [ids[index] for index in own], numbers)
        part = portable(scored(run, model, [prompts[index] for index in own], rollout))
    whole = Answers.joined([found for found in ranks.gather(part) if found is not None])
    return replace(whole, samples=replace(whole.samples, tokenizer=model.tokenizer))


def samples_of(model: LanguageModel, prompts: Sequence[Prompt], rollout: Rollout) -> Samples:
    """What was asked and answered, as text too."""
    texts = [decode(model.tokenizer, response) for response in rollout.responses]
    return Samples(prompts, texts, rollout.prompts, rollout.responses, rollout.stops, model.tokenizer)


def scored(run: "Run", model: LanguageModel, prompts: Sequence[Prompt], rollout: Rollout) -> Answers:
    """Responses and what the reward says of them."""
    samples = samples_of(model, prompts, rollout)
    reward = run.settings.reward
    if reward is None:
        return Answers(samples, rollout, torch.zeros(len(prompts)), {}, None)
    scores, parts = score_with_parts(reward, samples)
    return Answers(samples, rollout, scores.float(), parts, step_rewards(reward, samples))


def part_of(generator: torch.Generator, engine: RolloutEngine, before: int, count: int) -> torch.Generator:
    """The numbers by which a rank samples that has ``before`` of ``count`` responses before its own.

    An engine whose ``draws_per_response`` says how many float64 uniform numbers each response takes samples what one
    process would have sampled. For any other, each rank draws from a generator of its own, seeded by the given one.
    """
    draws: int | None = getattr(engine, "draws_per_response", None)
    if draws is None:
        seeds = torch.randint(2**62, (ranks.count(),), generator=generator)
        return torch.Generator().manual_seed(int(seeds[ranks.rank()]))
    own = generator.clone_state()
    for numbers, responses in ((own, before), (generator, count)):
        torch.rand(responses * draws, dtype=torch.float64, generator=numbers)
    return own


def portable(answers: Answers) -> Answers:
    """The same for other processes: on the CPU, without the tokenizer."""
    logprobs = [row.cpu() for row in answers.rollout.logprobs]
    return replace(
        answers,
        samples=replace(answers.samples, tokenizer=None),
        rollout=replace(answers.rollout, logprobs=logprobs),
        scores=answers.scores.cpu(),
        parts={name: part.cpu() for name, part in answers.parts.items()},
    )
