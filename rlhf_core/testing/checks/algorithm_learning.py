"""What an algorithm has to learn, from what."""

from math import exp
from typing import Any

import torch

from ...batch import Packed
from ...errors import UserError
from ...language_model import LanguageModel
from ...scalar_model import ScalarModel
from ...text import encode_prompt
from ..check import Checks, fail
from ..world import END, LEFT, RIGHT, WORDS, Arms, World
from .algorithm_saving import opened, plain_logprobs, plain_scores, scores_of
from .algorithm_stage import Stage, Words, fast, rows_for, stage_of

CHECKS = check = Checks()

STEPS = 60
"""Most steps that learning may take."""
ENOUGH, LEAST = 2.0, 0.5
"""Nats by which the better arm's log-odds have risen where training stops early, and where it counts as learned."""
OTHER = {RIGHT: LEFT, LEFT: RIGHT}


@check(
    "where one of two answers is better it becomes likelier (to a reward model: better), whichever of them it is",
    why="nothing else shows that the sign of the objective, its baseline and the places of its tokens are right",
    cure="see that the loss depends on the reward or the data, and that the optimiser is to minimise it",
)
def learns_the_better_arm(plugin: Any, world: World) -> None:
    """Answers of one token; rewards, demonstrations, rankings and texts prefer the same one: one, then the other.

    Held-out rows prefer the opposite, so that who trains on them learns that.
    """
    found = [learned(plugin, world, arm, held_out=OTHER[arm]) for arm in (RIGHT, LEFT)]
    gains = [end - start for start, end, _ in found]
    if min(gains) >= LEAST:
        return
    told = [
        f"{WORDS[arm]!r} went from {_share(start)} to {_share(end)} of the two in {steps} steps of training for it"
        for arm, (start, end, steps) in zip((RIGHT, LEFT), found, strict=True)
    ]
    fail("; ".join(told), cure=_cure(plugin, world, gains))


def _share(log_odds: float) -> str:
    return f"{1 / (1 + exp(-log_odds)):.0%}"


def _cure(plugin: Any, world: World, gains: list[float]) -> str:
    start, end, _ = learned(plugin, world, RIGHT, held_out=RIGHT)
    if end - start >= LEAST and gains[0] < LEAST:
        return 'it learned what held-out rows prefer: train on the data\'s "train" split alone'
    if max(map(abs, gains)) < 0.05:
        return "it did not move: see that the loss depends on the reward or the data, and on the trained parameters"
    if max(gains) <= -LEAST:
        return "it moved the wrong way: turn the sign of the loss, which is minimised, or of advantages"
    return (
        "it moved, but not towards what is better: see that each score meets its own response and each log-prob its "
        "own token (the one at index t is of token t), and that no regulariser is stronger than the objective"
    )


def learned(plugin: Any, world: World, arm: int, held_out: int) -> tuple[float, float, int]:
    """Log-odds (nats) of the better arm before and after training, and the steps it took."""
    reward = Arms({arm: 1.0, OTHER[arm]: -1.0})
    data = Words(rows_for(plugin), WORDS[arm], WORDS[held_out])
    stage = stage_of(world, fast(plugin), data=data, reward=reward, max_new_tokens=1)
    start = lean(stage, arm)
    for done in range(STEPS):
        stage.trainer.step = done % stage.trainer.total
        try:
            stage.trainer.train_step()
        except UserError:  # no gradient: an arm is all that is sampled, or nothing was learned before
            if start is None or (now := lean(stage, arm)) is None or now - start < LEAST:
                raise
            return start, now, done
        if done % 5 == 4 and start is not None and (now := lean(stage, arm)) is not None and now - start >= ENOUGH:
            return start, now, done + 1
    end = lean(stage, arm)
    if start is None or end is None:  # it trains a model that the policy plugin did not make
        return *_saved(stage, world, arm), STEPS
    return start, end, STEPS


def lean(stage: Stage, arm: int) -> float | None:
    """How much the model that is trained prefers an arm, in nats; None: it is not one that the policy plugin made."""
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
            return None
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
