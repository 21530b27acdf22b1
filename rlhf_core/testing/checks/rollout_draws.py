"""How an engine draws: with the generator alone, and by the policy's distribution."""

import random
from collections import Counter
from copy import deepcopy
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from ...contracts.rollout import Rollout, RolloutEngine
from ...errors import UserError
from ..check import Checks, NotApplicable, fail, fail_if
from ..process import seed
from ..world import ASK, ASSISTANT, LEFT, RIGHT, USER, WORDS, World
from .rollout_sampling import (
    MANY,
    PROMPTS,
    Row,
    fresh,
    needs_order,
    plain,
    plain_or_skip,
    probability_of,
    rows,
    sample,
    sample_or_skip,
)

CHECKS = check = Checks()

DRAWS = 1000
"""Responses whose first words are counted: enough to miss a word of 4 % that is never said."""

UNLIKELY = 1e-5
"""Below this probability a difference is no accident."""


@check(
    "two calls with the same state of the generator give the same, to the last bit",
    why="a run is repeated and resumed by its seed; held-out answers before and after training share their numbers",
    cure="keep nothing between calls: no counter, no generator of your own, no cache that changes sums",
)
def the_same_state_gives_the_same_responses(engine: RolloutEngine, world: World) -> None:
    """With everything else the same too."""
    engine, found = plain(engine), []
    for _ in range(3):
        seed(0)
        found.append(sample(engine, world.model, MANY))
    for again in found[1:]:
        told = _unlike(found[0], again)
        fail_if(bool(told), came=f"the second time {told}")


@check(
    "everything is drawn with the generator that it is given, and the global ones are left alone",
    why="what else draws from the global generators would change the samples, and they would change what else is drawn",
    cure="pass generator=generator to torch.rand or torch.multinomial; seed nothing",
)
def draws_with_the_generator_alone(engine: RolloutEngine, world: World) -> None:
    """Python's, numpy's and torch's."""
    found = []
    for number in (1, 2):
        seed(number)
        before = _states()
        found.append(sample(plain(deepcopy(engine)), world.model, MANY))
        moved = [name for name, state in _states().items() if state != before[name]]
        fail_if(bool(moved), came=f"{' and '.join(moved)} had another state after the call")
    told = _unlike(*found)
    fail_if(bool(told), came=f"with other global seeds and the same generator {told}")


@check(
    "another state of the generator gives other responses",
    why="the same numbers at each step are the same responses: nothing new is tried, and averages do not get better",
    cure="draw from the generator that is given, from the state that it is in",
)
def another_state_gives_other_responses(engine: RolloutEngine, world: World) -> None:
    """Another seed, and the same seed when numbers were drawn already."""
    engine, prompts = plain(engine), MANY
    first = sample(engine, world.model, prompts)
    other = sample(engine, world.model, prompts, seed=1)
    advanced = torch.Generator().manual_seed(0)
    torch.rand(1000, generator=advanced)
    later = sample(engine, world.model, prompts, generator=advanced)
    for name, found in (("another seed", other), ("a generator that was used before", later)):
        same = [list(one) == list(two) for one, two in zip(first.responses, found.responses, strict=False)]
        fail_if(all(same), came=f"{name} gave the same {len(same)} responses")


@check(
    "each copy of a prompt gets a response of its own",
    why="groups of responses to one prompt are compared with one another: where they are all alike nothing is learned",
    cure="draw other numbers for each response; do not look responses up by their prompt",
)
def copies_of_a_prompt_get_their_own_responses(engine: RolloutEngine, world: World) -> None:
    """Sixteen side by side, and as many apart."""
    together = [[ASK, LEFT]] * 16
    apart = [[ASK, LEFT] if number % 2 else [RIGHT] * (1 + number) for number in range(32)]
    for where, prompts in (("side by side", together), ("apart", apart)):
        rollout = sample(plain(engine), world.model, prompts)
        found = [
            tuple(int(token) for token in response)
            for prompt, response in zip(prompts, rollout.responses, strict=False)
            if prompt == [ASK, LEFT]
        ]
        fail_if(len(set(found)) == 1, came=f"{len(found)} responses to one prompt, {where}, are all {list(found[0])}")


@check(
    "samples follow the policy's distribution at the engine's temperature",
    why="policy gradients are averages over the policy's own samples: of others they point elsewhere",
    cure="draw from softmax(logits / temperature) of all words: no argmax, top-k, penalty or forbidden word",
)
def samples_follow_the_policy(engine: RolloutEngine, world: World) -> None:
    """First words, counted; then how surprising all later ones are, which on average is the entropy."""
    needs_order(engine, world)
    _first_words(plain(engine, limit=1), world, DRAWS)
    _later_words(plain(engine), world)
    try:
        own = plain(engine, limit=1, temperature=0.5)
        sample(own, world.model, [[ASK]])
    except (NotApplicable, UserError):
        return
    _first_words(own, world, DRAWS // 3)


def _first_words(engine: RolloutEngine, world: World, draws: int) -> None:
    prompt = [USER, ASK, ASSISTANT]  # no word is rare after it
    rollout = sample(engine, world.model, [prompt] * draws)
    ends = {"eos": world.model.end}  # of which an engine may have left the response
    first = Counter(
        int(response[0]) if len(response) else ends.get(stop, -1)
        for response, stop in zip_longest(rollout.responses, rollout.stops, fillvalue="")
    )
    counts = torch.tensor([first[word] for word in range(len(WORDS))])
    expected = distribution(world, prompt, engine.temperature)
    if int(counts.sum()) == draws and probability_of(counts, expected) > UNLIKELY:
        return
    word = int(((counts - draws * expected).square() / expected).argmax())
    came = (
        f"at temperature {engine.temperature:g} the first word of {draws} responses was {WORDS[word]!r} "
        f"{int(counts[word])} times, {draws * float(expected[word]):.0f} were expected"
    )
    likely = {
        ", as at temperature 1": distribution(world, prompt, 1.0),
        ", as at temperature 0.5 or of squared probabilities": distribution(world, prompt, 0.5 * engine.temperature),
    }
    fail(came + next((meant for meant, of in likely.items() if probability_of(counts, of) > UNLIKELY), ""))


def _later_words(engine: RolloutEngine, world: World) -> None:
    """The surprise −log p of a token, less the entropy of what it was drawn from, is 0 on average."""
    prompts = MANY * 6
    rollout = sample(engine, world.model, prompts)
    found = rows(rollout, prompts, world.model)
    surprise, variance, count = 0.0, 0.0, 0
    for row, words in zip(found, fresh(world.model, found, engine.temperature), strict=True):
        entropy = -(words.exp() * words).sum(1)
        spread = (words.exp() * words.square()).sum(1) - entropy.square()
        for place in row.said[1:]:
            surprise += float(-words[place, row.response[place]] - entropy[place])
            variance += float(spread[place])
            count += 1
    deviation = surprise / max(variance, 1e-9) ** 0.5
    fail_if(
        not abs(deviation) < 6,
        came=f"{count} words behind the first ones are {abs(surprise) / max(1, count):.3f} nats "
        f"{'less' if surprise < 0 else 'more'} surprising than they would be on average ({abs(deviation):.0f} standard "
        "deviations)",
    )


def distribution(world: World, prompt: list[int], temperature: float) -> Tensor:
    """``[V]`` probabilities of the word after a prompt."""
    row = Row(0, prompt, [ASK], torch.zeros(1), [True])
    return fresh(world.model, [row], temperature)[0][0].exp()


@check(
    "close to temperature 0 each word is the most probable one, whatever the generator",
    why="greedy answers are how models are compared and shown, and repeated",
    cure="divide logits by the temperature before drawing, or raise UserError for temperatures that are not taken",
)
def greedy_is_reproducible(engine: RolloutEngine, world: World) -> None:
    """At 0.0001, which an engine may refuse."""
    needs_order(engine, world)
    own = plain_or_skip(engine, temperature=1e-4)
    prompts = PROMPTS * 2
    first = sample_or_skip(own, world.model, prompts)
    found = rows(first, prompts, world.model)
    for row, words in zip(found, fresh(world.model, found, 1.0), strict=True):
        for place in row.said:
            lost = float(words[place].max() - words[place, row.response[place]])
            fail_if(
                lost > 5e-3,
                came=f"token {place} of response {row.number} is {WORDS[row.response[place]]!r}, where "
                f"{WORDS[int(words[place].argmax())]!r} is {lost:.3g} nats more probable",
            )
    other = sample(own, world.model, prompts, seed=1)
    for number, (one, two) in enumerate(zip(first.responses, other.responses, strict=False)):
        fail_if(
            list(one) != list(two), came=f"response {number} is {list(one)} by one generator, {list(two)} by another"
        )


@check(
    "with draws_per_response, a part of the prompts by its own numbers gives what it gives within the whole",
    why="with several processes each samples a part so: what they sample would depend on how many there are",
    cure="draw torch.rand(len(prompts), draws_per_response, dtype=torch.float64) first, a row each, or leave it out",
)
def parts_give_what_the_whole_gives(engine: RolloutEngine, world: World) -> None:
    """Three parts, of which one begins in the middle of equal prompts."""
    engine = plain(engine)
    draws = getattr(engine, "draws_per_response", None)
    if draws is None:
        raise NotApplicable("it has no draws_per_response")
    fail_if(not isinstance(draws, int) or draws < 0, came=f"draws_per_response is {draws!r}, not a number of draws")
    needs_order(engine, world)
    prompts = PROMPTS + [[ASK, LEFT]] * 3
    whole = sample(engine, world.model, prompts, seed=4)
    for begin, end in ((0, 3), (3, 8), (8, len(prompts))):
        generator = torch.Generator().manual_seed(4)
        torch.rand(begin * draws, dtype=torch.float64, generator=generator)
        part = sample(engine, world.model, prompts[begin:end], generator=generator)
        for number, response in enumerate(part.responses):
            within = list(whole.responses[begin + number])
            fail_if(
                list(response) != within,
                came=f"response {begin + number} of {len(prompts)} is {within} within the whole, {list(response)} when "
                f"prompts {begin} to {end - 1} are sampled apart",
            )


def _unlike(one: Rollout, other: Rollout) -> str:
    for number, (first, second) in enumerate(zip(one.responses, other.responses, strict=False)):
        if [int(token) for token in first] != [int(token) for token in second]:
            return f"response {number} was {list(second)}, not {list(first)}"
    for number, (before, after) in enumerate(zip(one.logprobs, other.logprobs, strict=False)):
        before, after = torch.as_tensor(before), torch.as_tensor(after)
        if not torch.equal(before.nan_to_num(1.0), after.nan_to_num(1.0)):
            return f"the log-probs of response {number} were others, by {float((before - after).abs().max()):.2g}"
    return ""


def _states() -> dict[str, object]:
    numbers = np.random.get_state(legacy=False)["state"]
    return {
        "Python's random": random.getstate(),
        "numpy.random": (numbers["pos"], numbers["key"].tolist()),
        "torch's global generator": torch.get_rng_state().tolist(),
    }
