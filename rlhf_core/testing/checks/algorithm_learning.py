"""What an algorithm has to learn, from what."""

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isnan, nan
from typing import Any

import torch

from ...batch import Packed
from ...errors import UserError
from ...language_model import LanguageModel
from ...optimizer import AdamW
from ...scalar_model import ScalarModel
from ...text import encode_prompt
from ..check import Checks, fail
from ..world import END, LEFT, RIGHT, WORDS, Arms, World
from .algorithm_saving import opened, plain_logprobs, plain_scores, scores_of
from .algorithm_stage import Stage, Words, rows_for, stage_of

CHECKS = check = Checks()

STEPS = 60
"""Most steps that learning may take; it takes about 10."""
RATE = 5e-4
"""Of the optimiser: so low that learning takes many steps, all in one direction, where noise goes to and fro."""
ENOUGH, LEAST = 2.0, 0.5
"""Nats by which the better arm's log-odds have risen where training stops early, and where it counts as learned."""
STRAIGHT = 0.95
"""Share of all movement that led to the end; who moves to and fro more than that has to learn with other seeds too."""
OTHER = {RIGHT: LEFT, LEFT: RIGHT}


@dataclass(frozen=True)
class Lesson:
    """What came of training for one arm.

    Attributes:
        arm: the better one.
        start: its log-odds (nats) beside the other before training.
        end: and after it.
        steps: that it took.
        straight: the share of all movement that led from start to end; 0: not known.
    """

    arm: int
    start: float
    end: float
    steps: int
    straight: float

    @property
    def gain(self) -> float:
        """Nats towards the better arm."""
        return self.end - self.start

    def __str__(self) -> str:
        """For people, as shares."""
        before, after = (f"{1 / (1 + exp(-nats)):.0%}" for nats in (self.start, self.end))
        return f"{WORDS[self.arm]!r} went from {before} to {after} of the two in {self.steps} steps of training for it"


@check(
    "where one of two answers is better it becomes likelier (to a reward model: better), whichever of them it is",
    why="nothing else shows that the sign of the objective, its baseline and the places of its tokens are right",
    cure="see that the loss depends on the reward or the data, and that the optimiser is to minimise it",
)
def learns_the_better_arm(plugin: Any, world: World) -> None:
    """Answers of one token; rewards, demonstrations, rankings and texts prefer the same one: one, then the other.

    Held-out rows prefer the opposite, so that who trains on them learns that.
    """
    for seed in (0, 1, 2):
        lessons = [learned(plugin, world, arm, held_out=OTHER[arm], seed=seed) for arm in (RIGHT, LEFT)]
        if min(lesson.gain for lesson in lessons) < LEAST:
            fail("; ".join(map(str, lessons)), cure=_cure(plugin, world, lessons))
        if min(lesson.straight for lesson in lessons) >= STRAIGHT:
            return


def _cure(plugin: Any, world: World, lessons: list[Lesson]) -> str:
    gains = [lesson.gain for lesson in lessons]
    if gains[0] < LEAST <= learned(plugin, world, RIGHT, held_out=RIGHT).gain:
        return 'it learned what held-out rows prefer: train on the data\'s "train" split alone'
    if max(map(abs, gains)) < 0.05:
        return "it did not move: see that the loss depends on the reward or the data, and on the trained parameters"
    if max(gains) <= -LEAST:
        return "it moved the wrong way: turn the sign of the loss, which is minimised, or of advantages"
    return (
        "it moved, but not towards what is better: see that each score meets its own response and each log-prob its "
        "own token (the one at index t is of token t), and that no regulariser is stronger than the objective"
    )


def learned(plugin: Any, world: World, arm: int, held_out: int, seed: int = 0) -> Lesson:
    """Train for an arm until it has gained enough; held-out rows prefer another one."""
    reward = Arms({arm: 1.0, OTHER[arm]: -1.0})
    data = Words(rows_for(plugin), WORDS[arm], WORDS[held_out])
    stage = stage_of(world, slow(plugin), data=data, reward=reward, max_new_tokens=1, seed=seed)
    seen = [lean(stage, arm)]
    while len(seen) <= STEPS and not seen[-1] - seen[0] >= ENOUGH:
        stage.trainer.step = (len(seen) - 1) % stage.trainer.total
        try:
            stage.trainer.train_step()
        except UserError:  # no finite gradient: all samples are alike by now, or nothing was learned before
            if not seen[-1] - seen[0] >= LEAST:
                raise
            break
        seen.append(lean(stage, arm))
    if isnan(seen[0]):  # it trains a model that the policy plugin did not make
        return Lesson(arm, *_saved(stage, world, arm), len(seen) - 1, straight=0.0)
    path = sum(abs(now - before) for before, now in pairwise(seen))
    return Lesson(arm, seen[0], seen[-1], len(seen) - 1, abs(seen[-1] - seen[0]) / max(path, 1e-9))


def slow(plugin: Any) -> Any:
    """The plugin with an optimiser of small even steps."""
    patient = deepcopy(plugin)
    patient.optimizer = AdamW(lr=RATE, eps=1e-8, schedule="constant")
    return patient


def lean(stage: Stage, arm: int) -> float:
    """How much the model that is trained prefers an arm, in nats; NaN: it is not one that the policy plugin made."""
    prompts = asked(stage)
    policy, scorer = stage.made(LanguageModel), stage.made(ScalarModel)
    with torch.no_grad():
        if policy is not None:
            with policy.evaluating():
                best, other = (_logprob(policy, prompts, word) for word in (arm, OTHER[arm]))
        elif scorer is not None:
            rows = [[[*prompt, word, END] for prompt in prompts] for word in (arm, OTHER[arm])]
            best, other = (float(scorer.last(Packed.of(row, stage.run.device)).mean()) for row in rows)
        else:
            return nan
    return best - other


def _logprob(policy: LanguageModel, prompts: list[list[int]], word: int) -> float:
    packed = Packed.answers(prompts, [[word]] * len(prompts), policy.device)
    return float(policy.logprobs(packed).sum()) / len(prompts)


def asked(stage: Stage) -> list[list[int]]:
    """Some training prompts, in tokens."""
    tokenizer = stage.policy.made[0].tokenizer
    prompts = stage.run.data.prompts("train")
    return [encode_prompt(tokenizer, prompt) for prompt in prompts[8 :: len(prompts) // 8]]


def _saved(stage: Stage, world: World, arm: int) -> tuple[float, float]:
    """The same of what save() writes, beside the small model, or (scores) beside nothing."""
    folder = world.new_folder() / "result"
    stage.algorithm.save(folder)
    saved, prompts = opened(folder), asked(stage)
    if scores_of(folder):
        best, other = (plain_scores(saved, [[*prompt, word, END] for prompt in prompts]) for word in (arm, OTHER[arm]))
        return 0.0, float((best - other).mean())
    before, after = (
        torch.stack([plain_logprobs(model, [prompt]).view(len(prompt), -1)[-1] for prompt in prompts]).mean(0)
        for model in (world.model.model, saved)
    )
    return float(before[arm] - before[OTHER[arm]]), float(after[arm] - after[OTHER[arm]])
