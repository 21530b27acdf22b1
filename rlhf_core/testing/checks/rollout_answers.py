"""Rollouts as lists: one response a prompt, in order, of tokens that exist, and why each ended."""

from math import isfinite
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ...contracts.rollout import Rollout, RolloutEngine
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import WORDS, World
from .rollout_sampling import MANY, PROMPTS, misplaced, plain, sample, words_of

CHECKS = check = Checks()


@check(
    "temperature and top_p are numbers above 0, top_p at most 1",
    why="algorithms read both: log-probs are taken at this temperature, and a nucleus is refused in training",
    cure="give the dataclass temperature: float = 1.0 and top_p: float = 1.0, and sample by them",
)
def says_how_it_samples(engine: RolloutEngine, world: World) -> None:
    """As its settings are."""
    for name, most in (("temperature", float("inf")), ("top_p", 1.0)):
        value: Any = getattr(engine, name, None)
        number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
        fail_if(not number or not 0 < value <= most, came=f"{name} is {value!r}")


@check(
    "one response, one tensor of log-probs and one stop a prompt; the prompts as they were given",
    why="whatever follows, rewards and advantages too, goes by place: one response too many or too few shifts them all",
    cure="return Rollout(prompts, responses, logprobs, stops) with lists of len(prompts), and leave the prompts alone",
)
def gives_one_response_a_prompt(engine: RolloutEngine, world: World) -> None:
    """Equal prompts too, and prompts are not written to."""
    prompts = [list(prompt) for prompt in PROMPTS]
    with torch.enable_grad():
        rollout = plain(engine).generate(world.model, prompts, torch.Generator().manual_seed(0))
    fail_if(
        not isinstance(rollout, Rollout),
        came=f"generate() gave {type(rollout).__name__}, not rlhf_core.contracts.rollout.Rollout",
    )
    for name in ("prompts", "responses", "logprobs", "stops", "chosen"):
        count = len(getattr(rollout, name))
        empty = name == "chosen" and count == 0
        fail_if(count != len(PROMPTS) and not empty, came=f"{count} {name} for {len(PROMPTS)} prompts")
    changed = [number for number, prompt in enumerate(prompts) if prompt != PROMPTS[number]]
    if changed:
        fail(
            came=f"prompt {changed[0]} was {PROMPTS[changed[0]]} and is {prompts[changed[0]]} after the call",
            cure="make a new list, [*prompt, *response]; do not append to the prompt that was handed over",
        )
    for number, (given, back) in enumerate(zip(PROMPTS, rollout.prompts, strict=True)):
        fail_if(given != [int(token) for token in back], came=f"prompt {number}: given {given}, handed back {back}")


@check(
    "each response answers the prompt in its place",
    why="a response beside another's prompt is scored and trained as an answer to something that it did not read",
    cure="if prompts are sorted or batched on the way, put the responses back in the order of the prompts",
)
def answers_in_the_order_of_the_prompts(engine: RolloutEngine, world: World) -> None:
    """By a model whose first word follows from the last one of the prompt; more prompts than fit most batches."""
    came, cure = misplaced(engine, world, 140)
    fail_if(bool(came), came=came, cure=cure)


@check(
    "tokens are whole numbers of the vocabulary",
    why="each is looked up in the model's embedding when the response is trained on",
    cure="give each response as a list of ints: tokens.tolist(), without filling up to a common length",
)
def tokens_are_of_the_vocabulary(engine: RolloutEngine, world: World) -> None:
    """Of the model that it was given."""
    rollout = sample(plain(engine), world.model, MANY)
    for number, response in enumerate(rollout.responses):
        for place, token in enumerate(_listed(response)):
            whole = isinstance(token, Integral) and not isinstance(token, bool)
            fail_if(
                not whole or not 0 <= token < len(WORDS),
                came=f"token {place} of response {number} is {token!r}, of a vocabulary of {len(WORDS)}",
            )


@check(
    "a response stops with its end token and 'eos', or without one and 'length'",
    why="a cut response is punished or bootstrapped, a finished one is not; the end token is an action with a reward",
    cure="keep the end token in the response, as its last; say 'eos' exactly where it is there, else 'length'",
)
def stops_are_right(engine: RolloutEngine, world: World) -> None:
    """With a limit of two tokens, so that the end token is often the last one that there was room for, and of six."""
    end = world.model.end
    for limit, prompts in ((2, PROMPTS * 8), (6, MANY)):
        rollout = sample(plain(engine, limit=limit), world.model, prompts)
        for number, (response, stop) in enumerate(zip(rollout.responses, rollout.stops, strict=False)):
            tokens = [int(token) for token in response]
            chosen = rollout.chosen[number] if number < len(rollout.chosen) else [True] * len(tokens)
            own = [bool(place < len(chosen) and chosen[place]) for place in range(len(tokens))]
            told = f"response {number}, {words_of(tokens)!r}, with stop {stop!r}"
            fail_if(stop not in ("eos", "length"), came=told)
            # What a user or a tool says after a turn is no mistake; what the policy says is.
            if any(tokens[place] == end and own[place] and own[place + 1] for place in range(len(tokens) - 1)):
                fail(
                    came=f"{told}, goes on after its end token",
                    expected="nothing follows the end token that the policy chose, no padding either",
                    cure="cut each response behind its first end token, and its log-probs with it",
                )
            ended = tokens[-1:] == [end]
            fail_if(stop == "eos" and not ended, came=f"{told}, does not end with the end token {end}")
            fail_if(stop == "length" and ended, came=f"{told}, ends with the end token {end}")


@check(
    "a float32 tensor of log-probs of each response's length, on the CPU, without a graph",
    why="they are laid end to end beside the tokens: one more or less shifts those of all later responses",
    cure="sample under model.evaluating(), and cut each row to its response: logprobs[i, :len(response)].float().cpu()",
)
def logprobs_fit_their_responses(engine: RolloutEngine, world: World) -> None:
    """Whatever their values are."""
    rollout = sample(plain(engine), world.model, MANY)
    for number, (response, found) in enumerate(zip(rollout.responses, rollout.logprobs, strict=False)):
        if not isinstance(found, Tensor):
            fail(came=f"response {number} has a {type(found).__name__} of log-probs")
        wrong = tuple(found.shape) != (len(response),) or found.dtype != torch.float32
        fail_if(
            wrong or found.device.type != "cpu",
            came=f"response {number} of {len(response)} tokens has log-probs of shape {list(found.shape)}, "
            f"{found.dtype}, on {found.device}",
        )
        fail_if(found.requires_grad, came=f"the log-probs of response {number} require grad")


@check(
    "chosen is empty, or says of each token whether the policy chose it; what was put there has log-prob 0",
    why="tokens of a tool or a user are no actions of the policy: to train on them teaches it to answer itself",
    cure="give a list of bools of each response's length in chosen, and 0 as log-prob where it is False",
)
def says_which_tokens_were_chosen(engine: RolloutEngine, world: World) -> None:
    """Of all responses, where it says it of any."""
    rollout = sample(plain(engine, limit=16), world.model, MANY)
    if not rollout.chosen:
        raise NotApplicable("all tokens are chosen by the policy")
    for number, (response, chosen) in enumerate(zip(rollout.responses, rollout.chosen, strict=False)):
        fail_if(
            len(chosen) != len(response),
            came=f"response {number} has {len(response)} tokens and {len(chosen)} flags in chosen",
        )
        for place, (own, value) in enumerate(zip(chosen, rollout.logprobs[number], strict=False)):
            fail_if(not own and float(value) != 0, came=f"token {place} of response {number} has log-prob {value:.4g}")


@check(
    "no prompts, no responses",
    why="a process of several, or an evaluation, may have nothing to sample",
    cure="return Rollout(prompts, [], [], []) where there are no prompts",
)
def survives_no_prompts(engine: RolloutEngine, world: World) -> None:
    """An empty list."""
    rollout = sample(plain(engine), world.model, [])
    counts = {name: len(getattr(rollout, name)) for name in ("prompts", "responses", "logprobs", "stops", "chosen")}
    fail_if(any(counts.values()), came=", ".join(f"{count} {name}" for name, count in counts.items()))


def _listed(response: Any) -> list[Any]:
    return list(response.tolist()) if hasattr(response, "tolist") else [_plain(token) for token in response]


def _plain(token: Any) -> Any:
    return token.item() if isinstance(token, Tensor) and token.ndim == 0 else token
