"""What is asked of rewards of steps on the way.

B responses.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from ...contracts.reward import Reward, Samples
from ..check import Checks, NotApplicable, fail, fail_if
from ..process import seed
from ..world import World
from .scores import TOLERANCE, ready, without_tokens

CHECKS = check = Checks()

Steps = Sequence[Sequence[tuple[int, float]]]


@check(
    "score_steps() gives a list for each response, of pairs (place, reward)",
    why="a reward at a place that is no token's would be paid to nobody, or to another response",
    cure="count places in samples.response_ids[i] from 0; the last token is len(response) − 1; [] where none is",
)
def places_its_steps(reward: Reward, world: World) -> None:
    """Of plain responses, odd ones, and none."""
    _ready(reward, world)
    for samples in (world.samples, world.odd_samples, without_tokens(world.samples), world.samples.select([])):
        steps = _steps(reward, samples)
        count = len(steps) if hasattr(steps, "__len__") else type(steps).__name__
        fail_if(count != len(samples), f"{count} lists for {len(samples)} responses")
        for number, given in enumerate(steps):
            _refuse_wrong(given, number, len(samples.response_ids[number]))


@check(
    "the same rewards of steps in any order of the batch",
    why="batches are shuffled and cut anew at every step",
    cure="find the steps of each response from its own prompt and tokens alone",
)
def ignores_the_order_of_steps(reward: Reward, world: World) -> None:
    """Backwards, and one by one."""
    _ready(reward, world)
    whole = _steps(reward, world.samples)
    order = list(range(len(world.samples)))[::-1]
    reversed_steps = _steps(reward, world.samples.select(order))
    for number, given in enumerate(whole):
        for found, how in (
            (reversed_steps[order.index(number)], "in the reversed batch"),
            (_steps(reward, world.samples.select([number]))[0], "alone"),
        ):
            fail_if(not _same(given, found), f"response {number} got {given} in its place and {found} {how}")


def _ready(reward: Reward, world: World) -> None:
    if not hasattr(reward, "score_steps"):
        raise NotApplicable("it rewards no steps")
    ready(reward, world)


def _steps(reward: Any, samples: Samples) -> Steps:
    seed(0)
    steps: Steps | None = reward.score_steps(samples)
    if steps is None:
        raise NotApplicable("it rewards no steps")
    return steps


def _refuse_wrong(given: Any, number: int, length: int) -> None:
    for pair in given:
        if not _is_pair(pair):
            fail(f"{pair!r} for response {number}, no pair (place, reward)")
        place, value = pair
        fail_if(not isinstance(place, int), f"place {place!r} for response {number} is no whole number")
        fail_if(not 0 <= place < length, f"place {place} for response {number} of {length} tokens")
        fail_if(not isfinite(value), f"{value} at place {place} of response {number}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple | list) and len(pair) == 2


def _same(first: Sequence[tuple[int, float]], second: Sequence[tuple[int, float]]) -> bool:
    if not all(_is_pair(pair) for pair in (*first, *second)):
        raise NotApplicable("it gives no pairs (place, reward)")
    if [place for place, _ in first] != [place for place, _ in second]:
        return False
    pairs = zip(first, second, strict=True)
    return all(abs(one - other) <= TOLERANCE * max(1.0, abs(one)) for (_, one), (_, other) in pairs)
