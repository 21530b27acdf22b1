"""What is asked of every reward: a score follows from its prompt and response, and from nothing else.

B responses.
"""

from copy import deepcopy
from typing import Any

import torch

from ...contracts.reward import Reward, Samples
from ..check import Checks, NotApplicable, fail_if
from ..process import seed
from ..world import World
from .random_state import RandomState
from .scores import different, numbers, other_hashes, ready, refuse_different, rotated, scores_of, short, trouble_with

CHECKS = check = Checks()


@check(
    "the same scores in any order of the batch",
    why="batches are shuffled and cut anew at every step: a score that depends on its place is noise to the policy",
    cure="score each response from its own prompt and text alone; put sorted ones back into their places",
)
def ignores_the_order_of_the_batch(reward: Reward, world: World) -> None:
    """Backwards, and shuffled."""
    ready(reward, world)
    whole, count = scores_of(reward, world.samples), len(world.samples)
    shuffled = [(place * 3 + 1) % count for place in range(count)]  # 3 and the count have no common divisor
    for order, how in ((list(range(count))[::-1], "the batch was reversed"), (shuffled, "the batch was shuffled")):
        found = torch.empty_like(whole)
        found[order] = scores_of(reward, world.samples.select(order))
        refuse_different(reward, whole, found, world.samples, "in its place", f"when {how}")


@check(
    "the same scores whatever else is in the batch",
    why="the size of a batch is chosen for speed and memory; it may not change what the policy is paid",
    cure="mask padding; take no mean, maximum or rank over the batch: algorithms whiten scores where they should",
)
def ignores_the_rest_of_the_batch(reward: Reward, world: World) -> None:
    """Alone, in halves, and beside much longer responses."""
    ready(reward, world)
    samples, count = world.samples, len(world.samples)
    whole = scores_of(reward, samples)
    alone = torch.cat([scores_of(reward, samples.select([number])) for number in range(count)])
    refuse_different(reward, whole, alone, samples, f"in a batch of {count}", "alone")
    halves = [samples.select(range(count // 2)), samples.select(range(count // 2, count))]
    found = torch.cat([scores_of(reward, half) for half in halves])
    refuse_different(reward, whole, found, samples, f"in a batch of {count}", f"in a batch of {count // 2}")
    twice = scores_of(reward, Samples.joined([samples, rotated(samples)]))[:count]
    refuse_different(reward, whole, twice, samples, f"in a batch of {count}", f"in a batch of {2 * count}")


@check(
    "the same scores whatever was scored before",
    why="nothing of a reward is saved: a run that goes on from a checkpoint has one that has scored nothing yet",
    cure="keep no running statistics; a cache has to know responses by prompt and text",
)
def forgets_what_it_scored(reward: Reward, world: World) -> None:
    """Again after others, among them the same texts as answers to other prompts; and by one set up anew."""
    anew = deepcopy(reward)
    ready(reward, world)
    first = scores_of(reward, world.samples)
    for others in (world.samples.select([0, 1]), short(world.odd_samples)):
        trouble_with(reward, others)
    other = scores_of(reward, rotated(world.samples))
    again = scores_of(reward, world.samples)
    refuse_different(reward, first, again, world.samples, "at first", "when others had been scored")
    ready(anew, world)
    fresh = scores_of(anew, rotated(world.samples))
    refuse_different(reward, other, fresh, rotated(world.samples), "after others", "by a copy that had scored nothing")


@check(
    "scores that were handed out stay as they are",
    why="the batch keeps them for the whole step, evaluation for longer",
    cure="return a new tensor each time, or .clone() the buffer",
)
def keeps_no_hand_on_its_scores(reward: Reward, world: World) -> None:
    """No buffer that the next call writes into."""
    ready(reward, world)
    found: Any = reward.score(world.samples)
    before = numbers(found)
    reward.score(rotated(world.samples))
    places = different(before, numbers(found))
    fail_if(bool(places), f"score {places[:1]} of one batch became another when the next batch was scored")


@check(
    "the same scores under the same seed",
    why="a run has to give the same numbers when it is repeated or resumed: else no change can be told from noise",
    cure="draw from run.generator(…); use no clock, and no hash() of text, which differs from process to process",
)
def repeats_under_a_seed(reward: Reward, world: World) -> None:
    """Twice by one reward, by a copy, and in a process in which ``hash`` gives other numbers."""
    first, second = deepcopy(reward), deepcopy(reward)
    ready(reward, world, run_seed=3)
    whole = scores_of(reward, world.samples)
    refuse_different(reward, whole, scores_of(reward, world.samples), world.samples, "at first", "under the same seed")
    ready(first, world, run_seed=3)
    again = scores_of(first, world.samples)
    refuse_different(reward, whole, again, world.samples, "at first", "by a copy under the same seed")
    with other_hashes(second):
        ready(second, world, run_seed=3)
        found = scores_of(second, world.samples)
    refuse_different(reward, whole, found, world.samples, "here", "in a process with other hash() values")


@check(
    "random numbers of the run are drawn at most, never seeded",
    why="sampling draws from the same generators: seeding them makes the policy give the same answers at every step",
    cure="use a generator of your own: torch.Generator().manual_seed(run.seed), random.Random(run.seed)",
)
def does_not_seed_the_run(reward: Reward, world: World) -> None:
    """From two states of the generators it may not come to the same one."""
    run = ready(deepcopy(reward), world)
    after: list[dict[str, Any]] = []
    for number in (1, 2):
        copy = deepcopy(reward)
        seed(number)
        copy.setup(run)
        after.append({f"setup() seeded {name}": state for name, state in RandomState.now().states.items()})
        seed(number)
        copy.score(world.samples)
        after[-1] |= {f"score() seeded {name}": state for name, state in RandomState.now().states.items()}
    same = [name for name, state in after[0].items() if state == after[1][name]]
    fail_if(bool(same), "; ".join(same))


@check(
    "two rewards of a run are independent of one another",
    why="the reward, a judge and parts of a sum may be of one class",
    cure="keep what setup() makes on self, not on the class or in the module",
)
def shares_nothing_with_a_copy(reward: Reward, world: World) -> None:
    """A second one is set up, in a run of another seed, and scores others."""
    other = deepcopy(reward)
    ready(reward, world)
    before = scores_of(reward, world.samples)
    if different(before, scores_of(reward, world.samples)):
        raise NotApplicable("its scores change by themselves")
    ready(other, world, run_seed=1)
    scores_of(other, rotated(world.samples))
    after = scores_of(reward, world.samples)
    refuse_different(reward, before, after, world.samples, "at first", "when a copy had been set up and used")
