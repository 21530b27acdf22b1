"""What is asked of algorithms that sample responses and score them: which tokens they train on, and by how much."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.data import Data
from ...errors import UserError
from ...language_model import LanguageModel
from ..check import Checks, NotApplicable, fail_if
from ..world import ASK, END, LEFT, OTHER, PAD, RIGHT, USER, WORDS, World
from .algorithm_level import BETTER, Counted, Level, TwoArms, head_gradient, sampling, unlike
from .algorithm_stage import Watched, Words, rows_for, stage_of

CHECKS = check = Checks()


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
    if abs(ratio - 0.5) > 0.02 and not torch.allclose(warm, head_gradient(world, plugin), atol=1e-5):
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
