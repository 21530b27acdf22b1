"""What is asked of algorithms that sample responses and score them: which tokens they train on, and by how much.

The policy of most of these checks is level: its head is 0, so that all words are equally likely, log-probs are the
same however they are computed, and neither an entropy bonus nor a KL to the start has a gradient. Responses are one of
the two arms and the end token, so neither length nor stop tells them apart. V words, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...batch import Packed
from ...contracts.data import Data
from ...contracts.rollout import Rollout
from ...errors import UserError
from ...language_model import LanguageModel
from ...scalar_model import ScalarModel
from ...settings import Trainer as Every
from ..check import Checks, NotApplicable, fail_if
from ..world import ASK, END, LEFT, OTHER, PAD, RIGHT, USER, WORDS, Arms, SmallData, World
from .algorithm_stage import Stage, Watched, Words, rows_for, stage_of

CHECKS = check = Checks()

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


@check(
    "where all responses are worth the same, 0, the gradient does not depend on them: the advantage is 0",
    why="something else than the reward moves the policy: it drifts where nothing can be learned, or noise grows",
    cure="multiply every log-prob by an advantage, the score less its baseline; add a small number to the standard "
    "deviation by which advantages are divided; detach values that are subtracted. An algorithm that imitates samples "
    "says so in rlhf_checks",
)
def zero_advantage_gives_zero_gradient(plugin: Any, world: World) -> None:
    """One answer alone, then the other; what else is learned from, as text for pretraining, is the same both times.

    Beside the gradient where the arms differ. A critic whose values are 0 is right already.
    """
    stage, pieces = sampling(world, plugin)
    usual = stage.gradients(pieces).largest
    found = []
    for arm in (LEFT, RIGHT):
        stage, pieces = sampling(world, plugin, worth={}, arm=arm)
        found.append(stage.gradients(pieces))
        found[-1].refuse_infinite()
    gaps = {name: float((gradient - found[1].of[name]).abs().max()) for name, gradient in found[0].of.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    fail_if(
        gaps[worst] > 1e-3 * usual + 1e-7,
        came=f"the gradient of {worst} changes with the answers by {gaps[worst]:.2g}, where a reward that tells them "
        f"apart makes gradients of {usual:.2g}",
    )


@check(
    "an algorithm that samples trains on the responses alone, not on prompts, padding or what a tool wrote",
    why="the policy would learn to write the questions, or answers of tools, and padding would count as text",
    cure="multiply by the mask of the tokens that the policy chose (Scored.mask, Experience.mask; Rollout.chosen)",
)
def trains_on_what_was_chosen_alone(plugin: Any, world: World) -> None:
    """By words of the head that are in prompts alone, or were put into responses.

    Of one microbatch, too: advantages of responses to one prompt add up to 0, and so do the prompt's gradients.
    """
    for budget, most in ((8192, None), (1, 1)):
        gradient = head_gradient(world, plugin, most, budget=budget, uneven=True)
        for word, what in ((ASK, "prompts"), (PAD, "padding")):
            far = unlike(gradient, word, USER)
            fail_if(not far <= 1e-3, came=f"the word {WORDS[word]!r}, only there in {what}, has a gradient ({far:.2g})")
    far = unlike(head_gradient(world, plugin, after=(OTHER, END)), OTHER, USER)
    fail_if(
        not far <= 1e-3,
        came=f"a word that a tool wrote, which Rollout.chosen says was not chosen, has a gradient ({far:.2g})",
        cure="leave out of the loss the tokens that Rollout.chosen marks False (Scored.mask does)",
    )


@check(
    "every token that the policy chose is trained on, from the first to the end token",
    why="a policy whose end token is left out never learns when to stop; one whose first is left out, how to begin",
    cure="count from the response's first token to its end token, both included: the log-prob at index t is of token t",
)
def trains_on_every_chosen_token(plugin: Any, world: World) -> None:
    """The better arm comes first (some train on better responses alone), the end token last."""
    gradient = head_gradient(world, plugin)
    for word, place in ((RIGHT, "first"), (END, "last")):
        far = unlike(gradient, word, USER)
        fail_if(not far > 1e-4, came=f"{WORDS[word]!r}, the {place} token of responses, has no gradient of its own")


@check(
    "log-probs are taken at the temperature at which was sampled",
    why="at another one the ratio to the policy that sampled is not 1 at first, and what is trained is not what acts",
    cure="hand run.rollout.temperature to LanguageModel.logprobs(packed, temperature), or divide logits by it",
)
def trains_at_the_rollouts_temperature(plugin: Any, world: World) -> None:
    """At a level policy all log-probs stay, and their gradients are halved."""
    warm = head_gradient(world, plugin)
    try:
        hot = head_gradient(world, plugin, temperature=2.0)
    except UserError as error:
        raise NotApplicable(f"it refuses a temperature of 2: {error}") from error
    ratio = float((warm * hot).sum() / (warm * warm).sum())
    if abs(ratio - 0.5) > 0.02 and not torch.equal(warm, head_gradient(world, plugin)):
        raise NotApplicable("its batches cannot be repeated; another check says so")
    fail_if(
        abs(ratio - 0.5) > 0.02,
        came=f"at temperature 2 a level policy's gradient is {ratio:.3g} times that at temperature 1, expected 0.5",
    )


@check(
    "each step samples by numbers of its own, which follow from the run's seed, and answers training prompts",
    why="the same numbers at each step or with each seed repeat one experiment; held-out prompts are there to measure",
    cure='draw with run.generator("rollout", step), and take prompts from run.data.prompts("train")',
)
def samples_anew_at_each_step(plugin: Any, world: World) -> None:
    """What the rollout is handed at the first two steps, and with another seed."""
    drawn, prompts = _drawn(world, plugin, seed=0)
    fail_if(
        len(drawn) > 1 and drawn[0] == drawn[1],
        came="the generator that generate() was handed was in the same state at steps 0 and 1",
    )
    fail_if(
        drawn[0] == _drawn(world, plugin, seed=1)[0][0],
        came="the generator that generate() was handed was in the same state with seeds 0 and 1",
    )
    held_out = sum(prompt[:2] == [ASK, ASK] for prompt in prompts)  # as ``Words`` marks them
    fail_if(held_out > 0, came=f"{held_out} of {len(prompts)} prompts that were answered to learn are held-out ones")


def _drawn(world: World, plugin: Any, seed: int) -> tuple[list[list[bytes]], list[list[int]]]:
    rollout, reward = TwoArms(), Counted(BETTER)
    stage = stage_of(
        world, plugin, policy=Level(), data=Words(rows_for(plugin)), reward=reward, rollout=rollout, seed=seed
    )
    rollout.prompts.clear()
    states = []
    for step in range(min(2, stage.trainer.total)):
        rollout.states.clear()
        stage.first(step)
        if not rollout.states:
            raise NotApplicable("it does not sample anew at each step")
        states.append(list(rollout.states))
    return states, rollout.prompts


@check(
    "a response without tokens has a finite loss",
    why="an engine may give one, and 0/0 for its mean would spoil all weights",
    cure="clamp counts that are divided by to at least 1, and index no last token of an empty response",
)
def survives_empty_responses(plugin: Any, world: World) -> None:
    """Every third response is empty."""
    stage, pieces = sampling(world, plugin, empty=3)
    stage.gradients(pieces).refuse_infinite()


@dataclass
class Dropping(Watched):
    """A model with dropout before its head, which acts in training mode."""

    def language_model(self, data: Data) -> LanguageModel:
        """The small model with it."""
        model = super().language_model(data)
        model.model.model.norm.register_forward_hook(_drop)  # type: ignore[union-attr]
        return model


def _drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return nn.functional.dropout(output, 0.3, module.training)


@check(
    "first_ratio_max, where it is logged, is 1: the policy that is trained begins as the one that sampled",
    why="a ratio that starts elsewhere means other log-probs: dropout, another temperature, or a shifted mask",
    cure="put the policy into eval() mode in setup(), and compare with the rollout's log-probs at its temperature",
)
def starts_at_a_ratio_of_one(plugin: Any, world: World) -> None:
    """With a policy that has dropout, at a temperature of 1.3."""
    stage = stage_of(world, plugin, policy=Dropping(), rollout=TwoArms(temperature=1.3))
    minibatch = stage.first()
    metrics = stage.gradients(minibatch).metrics
    if "first_ratio_max" not in metrics:
        raise NotApplicable("it logs no first_ratio_max")
    ratio = metrics["first_ratio_max"]
    fail_if(not abs(ratio - 1) <= 1e-3, came=f"first_ratio_max is {ratio:.4g} at the first step")
