"""A level policy, the two arms, and what an algorithm's gradient is there, for checks of those that sample.

The head of the policy is 0, so that all words are equally likely, log-probs are the same however they are computed, and
neither an entropy bonus nor a KL to the start has a gradient. Responses are one of the two arms and the end token, so
neither length nor stop tells them apart. V words, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...batch import Packed
from ...contracts.data import Data
from ...contracts.rollout import Rollout
from ...language_model import LanguageModel
from ...scalar_model import ScalarModel
from ...settings import Trainer as Every
from ..check import NotApplicable
from ..world import ASK, END, LEFT, RIGHT, Arms, SmallData, World
from .algorithm_stage import Stage, Watched, rows_for, stage_of

BETTER = {RIGHT: 1.0, LEFT: -1.0}


@dataclass
class Level(Watched):
    """All words are equally likely, all values 0."""

    def language_model(self, data: Data) -> LanguageModel:
        """A head of zeros."""
        model = super().language_model(data)
        nn.init.zeros_(model.model.get_output_embeddings().weight)  # type: ignore[operator]
        return model

    def scalar_model(self, path: str | None = None) -> ScalarModel:
        """A head of zeros."""
        model = super().scalar_model(path)
        model.reset_head(std=0.0)
        return model


@dataclass
class TwoArms:
    """A rollout that answers with one of two words and what comes ``after`` it; of the latter only END is chosen."""

    rlhf_api: ClassVar[int] = 1

    temperature: float = 1.0
    top_p: float = 1.0
    after: tuple[int, ...] = (END,)
    arm: int | None = None  # the only answer; None: one and the other in turn
    empty: int = 0  # every so manyth response is empty; 0: none
    uneven: bool = False  # prompts get longer from one to the next, so that gradients of equal ones do not cancel
    max_new_tokens: int = 4
    states: list[bytes] = field(default_factory=list)  # of the generators that were handed in
    prompts: list[list[int]] = field(default_factory=list)  # that were answered

    def generate(self, model: LanguageModel, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Rollout:
        """The first answer is drawn with the generator, the others take turns."""
        self.states.append(bytes(generator.get_state().tolist()))
        self.prompts += [list(prompt) for prompt in prompts]
        if self.uneven:
            prompts = [[ASK] * (place % 3) + list(prompt) for place, prompt in enumerate(prompts)]
        first = int(torch.randint(2, (1,), generator=generator))
        arms = (LEFT, RIGHT) if self.arm is None else (self.arm, self.arm)
        rows = [[arms[(first + place) % 2], *self.after] for place in range(len(prompts))]
        if self.empty:
            rows = [[] if place % self.empty == 1 else row for place, row in enumerate(rows)]
        chosen = [[place == 0 or token == END for place, token in enumerate(row)] for row in rows]
        flags = chosen if len(self.after) > 1 else ()
        stops = ["eos" if row else "length" for row in rows]
        return Rollout(prompts, rows, self.logprobs(model, prompts, rows, chosen), stops, flags)

    def logprobs(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], rows: list[list[int]], chosen: list[list[bool]]
    ) -> list[Tensor]:
        """What the model says of them."""
        packed = Packed.answers(prompts, rows, model.device)
        with torch.no_grad():
            found = torch.split(model.logprobs(packed, self.temperature).cpu(), packed.lengths.tolist())
        return [
            values[len(prompt) :] * torch.tensor(flags, dtype=torch.float32)
            for values, prompt, flags in zip(found, prompts, chosen, strict=True)
        ]


@dataclass
class Counted(Arms):
    """How often a reward was asked."""

    asked: int = 0

    def score(self, samples: Any) -> Tensor:
        """What the answers are worth."""
        self.asked += 1
        return super().score(samples)


def sampling(
    world: World, plugin: Any, worth: dict[int, float] | None = None, budget: int = 8192, **engine: Any
) -> tuple[Stage, list[Any]]:
    """A stage with a level policy, and all microbatches of a batch for which it sampled and scored.

    Args:
        world: where.
        plugin: what is asked.
        worth: what first words are worth, the arms differently unless given.
        budget: tokens of a microbatch.
        engine: fields of ``TwoArms``.

    Raises:
        NotApplicable: it learns from something else.
    """
    rollout, reward = TwoArms(**engine), Counted(BETTER if worth is None else worth)
    every = Every(checkpoint_every=0, microbatch_tokens=budget)
    stage = stage_of(
        world, plugin, every=every, policy=Level(), data=SmallData(rows_for(plugin)), reward=reward, rollout=rollout
    )
    _level_the_rest(stage)
    rollout.states.clear()
    rollout.prompts.clear()
    reward.asked = 0
    pieces = [piece for minibatch in stage.minibatches() for piece in minibatch]
    if not rollout.states or not reward.asked:
        raise NotApplicable("it does not learn from responses that it samples and scores anew at each step")
    return stage, pieces


def _level_the_rest(stage: Stage) -> None:
    """Zeros in what the algorithm added itself, as a value head, where it trains the policy that the plugin made."""
    if stage.made(LanguageModel) is None:
        return
    known = {id(parameter) for model in stage.policy.made for parameter in model.model.parameters()}
    for parameter in stage.trained.values():
        if id(parameter) not in known:
            nn.init.zeros_(parameter)


def head_of(stage: Stage) -> str:
    """The name of the trained policy's head, ``[V, H]``.

    Raises:
        NotApplicable: the policy that is trained is not the one that the policy plugin made.
    """
    model = stage.made(LanguageModel)
    head = None if model is None else model.model.get_output_embeddings().weight
    for name, parameter in stage.trained.items():
        if parameter is head:
            return name
    raise NotApplicable("it does not train the head of the policy")


def head_gradient(world: World, plugin: Any, most: int | None = None, **options: Any) -> Tensor:
    """``[V, H]`` of the ``most`` first microbatches of a batch, less that of a reward of 0: what the reward moves.

    The row of a word is Σ_t c_t·(1[y_t = word] − 1/V)·h_t: those of words that are never trained on are all alike.
    """
    found = []
    for worth in (BETTER, {}):
        stage, pieces = sampling(world, plugin, worth=worth, **options)
        found.append(stage.gradients(pieces[:most]).of[head_of(stage)])
    gradient = found[0] - found[1].nan_to_num()  # another check says where there is no finite one
    if not bool(gradient.any()):
        raise NotApplicable("the reward makes no gradient; another check asks whether anything is learned")
    return gradient


def unlike(gradient: Tensor, word: int, other: int) -> float:
    """How far two rows are apart, in units of the largest entry."""
    return float((gradient[word] - gradient[other]).abs().max() / gradient.abs().max())
