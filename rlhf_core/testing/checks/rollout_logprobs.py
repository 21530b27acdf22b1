"""The log-probs that an engine records: those of a fresh forward, of what it sampled, as it sampled it.

V vocabulary.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from ...contracts.rollout import RolloutEngine
from ...errors import UserError
from ...language_model import LanguageModel
from ..check import Checks, NotApplicable, fail
from ..world import ASK, END, LEFT, OTHER, RIGHT, World, language_model, word_tokenizer
from .rollout_sampling import (
    MANY,
    Row,
    counting,
    fresh,
    needs_order,
    padded_with_the_end,
    plain,
    plain_or_skip,
    rows,
    sample,
    sample_by,
    sample_or_skip,
)

CHECKS = check = Checks()

CLOSE = {"cpu": 1e-4}
"""nats by which another order of the same sums may differ; on other devices ten times that"""


@check(
    "the recorded log-probs are those of a fresh forward over prompt and response",
    why="the ratio of new to old log-probs starts at 1 only then: else every update is clipped or pushed at random",
    cure="record log_softmax(logits / temperature) of the sampled token, from the logits that it was sampled from",
)
def logprobs_are_those_of_a_fresh_forward(engine: RolloutEngine, world: World) -> None:
    """At temperature 1 where it can be set, of prompts of different lengths side by side."""
    needs_order(engine, world)
    engine = plain(engine)
    prompts = MANY
    found = rows(sample(engine, world.model, prompts), prompts, world.model)
    told, cure = difference(world.model, found, engine.temperature)
    if told:
        fail(came=told, cure=cure)


@check(
    "the recorded log-probs are those at the engine's temperature",
    why="algorithms take the policy's log-probs at rollout.temperature: at another one their ratio to these is not 1",
    cure="divide the logits by self.temperature before log_softmax, and sample from the same numbers",
)
def logprobs_are_at_the_temperature(engine: RolloutEngine, world: World) -> None:
    """At 0.7 and 1.6."""
    needs_right_logprobs(engine, world)
    prompts, refusals = MANY, 0
    for temperature in (0.7, 1.6):
        try:
            own = plain(engine, temperature=temperature)
            rollout = sample(own, world.model, prompts)
        except UserError:
            refusals += 1
            continue
        told, cure = difference(world.model, rows(rollout, prompts, world.model), temperature)
        if told:
            fail(came=told, cure=cure)
    if refusals == 2:
        raise NotApplicable("it takes no other temperature")


@check(
    "with top_p < 1 the recorded log-probs are still those of the full distribution",
    why="the policy that is trained or measured has no nucleus: log-probs of the cut distribution are not its own",
    cure="record log_softmax(logits / temperature) as it was before words were cut off",
)
def logprobs_are_of_the_full_distribution(engine: RolloutEngine, world: World) -> None:
    """At 0.6."""
    needs_right_logprobs(engine, world)
    prompts = MANY
    own = plain_or_skip(engine, top_p=0.6)
    found = rows(sample_or_skip(own, world.model, prompts), prompts, world.model)
    told, cure = difference(world.model, found, own.temperature)
    full = fresh(world.model, found, own.temperature)
    cut = [at(within(words, 0.6), row.response) for words, row in zip(full, found, strict=True)]
    if told and all(_alike(row, values) for row, values in zip(found, cut, strict=True)):
        told += "; they are those after words outside the nucleus were cut off"
    if told:
        fail(came=told, cure=cure)


@check(
    "with top_p < 1 no word outside the nucleus is sampled",
    why="top_p is read by algorithms and people: one that is set and does nothing is believed",
    cure="draw from the fewest most probable words that reach top_p together, or raise UserError where it is not 1",
)
def samples_stay_in_the_nucleus(engine: RolloutEngine, world: World) -> None:
    """At 0.6."""
    needs_order(engine, world)
    own = plain_or_skip(engine, top_p=0.6)
    prompts = MANY * 4
    found = rows(sample_or_skip(own, world.model, prompts), prompts, world.model)
    for row, full in zip(found, fresh(world.model, found, own.temperature), strict=True):
        for place in row.said:
            probabilities = full[place].exp()
            own_probability = probabilities[row.response[place]]
            before = float(probabilities[probabilities > own_probability].sum())
            if before > 0.6 + 1e-3:
                fail(
                    came=f"response {row.number} has word {row.response[place]} of probability "
                    f"{float(own_probability):.3g} at token {place}, where more probable ones have {before:.3g} already"
                )


@check(
    "responses and log-probs belong to the model as it is now",
    why="the policy changes at every step: samples of an older one, or of another model, are off-policy without a word",
    cure="read the weights of the model that generate() is given at every call; keep no copy of them or of a cache",
)
def samples_from_the_model_as_it_is_now(engine: RolloutEngine, world: World) -> None:
    """After an update in place, and of another model."""
    needs_right_logprobs(engine, world)
    engine, prompts, model = plain(engine), MANY, world.model
    sample_by(engine, model, prompts)
    with torch.no_grad():
        numbers = torch.Generator().manual_seed(5)
        for weight in model.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=numbers).to(weight.device))
    other = language_model(word_tokenizer(), seed=8)
    other.model.to(world.device).eval()
    for when, now in (("after an update of the weights in place", model), ("of a second model", other)):
        as_it_is = deepcopy(now)
        found = rows(sample_by(engine, now, prompts), prompts, as_it_is)
        told, _ = difference(as_it_is, found, engine.temperature)
        if told:
            fail(came=f"{when}, {told}")


@check(
    "places are counted from the start of each prompt",
    why="a model with learned positions reads a prompt that is shifted by padding as another text",
    cure="pass position_ids that begin with 0 at each prompt's first token, and attend to nothing that is padding",
)
def positions_begin_with_the_prompt(engine: RolloutEngine, world: World) -> None:
    """By a model that learned a vector for each place."""
    needs_right_logprobs(engine, world)
    engine, prompts, model = plain(engine), MANY, counting(world)
    told, cure = difference(model, rows(sample_or_skip(engine, model, prompts), prompts, model), engine.temperature)
    if told:
        fail(came=f"of a model with learned positions (GPT-2), {told}", cure=cure)


@check(
    "an end token inside a prompt is read like any other, also where the tokenizer pads with it",
    why="conversations have end tokens after each turn, and many tokenizers have no other token to pad with",
    cure="make attention masks from the prompts' lengths, never by tokens != pad; look for the end in responses alone",
)
def reads_end_tokens_in_prompts(engine: RolloutEngine, world: World) -> None:
    """At the start, in the middle and as the last word."""
    needs_right_logprobs(engine, world)
    engine, model = plain(engine), padded_with_the_end(world)
    prompts = [[END], [ASK, LEFT, END, OTHER, ASK], [END, ASK, END, RIGHT], [OTHER, END]] * 6
    rollout = sample(engine, model, prompts)
    if not any(
        len(response) for prompt, response in zip(prompts, rollout.responses, strict=False) if prompt[-1] == END
    ):
        fail(came=f"all responses to prompts that end with {END}, the end token, have no tokens")
    told, cure = difference(model, rows(rollout, prompts, model), engine.temperature)
    if told:
        fail(came=f"of prompts with the end token {END} in them, {told}", cure=cure)


@check(
    "dropout is off while it samples, whatever mode the model is in",
    why="held-out answers are sampled from models that are being trained: dropout would draw with the global generator",
    cure="sample inside `with model.evaluating():`, which puts the mode back afterwards",
)
def dropout_is_off_while_it_samples(engine: RolloutEngine, world: World) -> None:
    """Of a model in training mode with dropout of 0.3."""
    engine, prompts, model = plain(engine), MANY, counting(world)
    found = rows(sample_or_skip(engine, model, prompts), prompts, model)
    if difference(model, found, engine.temperature)[0]:
        raise NotApplicable("its log-probs are not those of a fresh forward in eval mode either")
    model.model.train()
    found = rows(sample(engine, model, prompts), prompts, model)
    model.model.eval()
    told, cure = difference(model, found, engine.temperature)
    if told:
        fail(came=f"of a model in training mode, {told}", cure=cure)


def needs_right_logprobs(engine: RolloutEngine, world: World) -> None:
    """Leave what goes wrong everywhere to the one check that is about it."""
    engine, prompts = plain(engine), MANY
    found = rows(sample(engine, world.model, prompts), prompts, world.model)
    if difference(world.model, found, engine.temperature)[0]:
        raise NotApplicable("its log-probs are not those of a fresh forward at temperature 1 either")


def difference(model: LanguageModel, found: Sequence[Row], temperature: float) -> tuple[str, str]:
    """What is wrong with recorded log-probs, what they seem to be, and what to do; empty where they are right."""
    allowed = CLOSE.get(model.device.type, 1e-3)
    full = fresh(model, found, temperature)
    expected = [at(words, row.response) for words, row in zip(full, found, strict=True)]
    gaps = [
        (abs(float(row.logprobs[place]) - float(right[place])), row, place, float(right[place]))
        for row, right in zip(found, expected, strict=True)
        for place in row.said
    ]
    wrong = [gap for gap in gaps if not gap[0] <= allowed]  # nan is wrong
    if not wrong:
        return "", ""
    _, row, place, right = max(wrong, key=lambda gap: gap[0] if gap[0] == gap[0] else float("inf"))
    told = (
        f"token {place} of response {row.number} was recorded with {float(row.logprobs[place]):.4f}, a fresh forward "
        f"at temperature {temperature:g} gives {right:.4f} ({len(wrong)} of {len(gaps)} tokens differ)"
    )
    meant, cure = likeness(model, found, expected, temperature)
    return told + meant, cure


def likeness(
    model: LanguageModel, found: Sequence[Row], expected: Sequence[Tensor], temperature: float
) -> tuple[str, str]:
    """What the recorded numbers are instead, where one common mistake explains them all."""
    at_one = [at(words, row.response) for words, row in zip(fresh(model, found, 1.0), found, strict=True)]
    guesses = {
        "; they are those at temperature 1": (at_one, "divide the logits by self.temperature before log_softmax"),
        "; they are negated": ([-right for right in expected], "record log_softmax itself, not the loss −log p"),
        "; they are probabilities": ([right.exp() for right in expected], "record log_softmax, not softmax"),
        "; each is that of the token after it": (
            [torch.cat([right[1:], right[-1:]]) for right in expected],
            "the logits after token t are those of token t + 1: begin with the logits of the prompt's last token",
        ),
        "; each is that of the token before it": (
            [torch.cat([right[:1], right[:-1]]) for right in expected],
            "the logits after token t are those of token t + 1: record what a token was drawn from",
        ),
        "; they are all 0": (
            [torch.zeros_like(right) for right in expected],
            "record log_softmax(logits / temperature) of each sampled token",
        ),
    }
    for meant, (guess, cure) in guesses.items():
        if all(_alike(row, values, meant) for row, values in zip(found, guess, strict=True)):
            return meant, cure
    return "", ""


def at(words: Tensor, tokens: Sequence[int]) -> Tensor:
    """``[length]`` of ``[length, V]`` at the tokens that were sampled."""
    return words.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def within(words: Tensor, top_p: float) -> Tensor:
    """``[length, V]`` log-probs after all but the fewest most probable words that reach ``top_p`` are cut off."""
    probabilities, order = words.exp().sort(dim=1, descending=True)
    probabilities[probabilities.cumsum(1) - probabilities >= top_p] = 0
    kept = torch.zeros_like(words).scatter(1, order, probabilities)
    return (kept / kept.sum(1, keepdim=True)).log()


def _alike(row: Row, values: Tensor, meant: str = "") -> bool:
    places = row.said
    if "after it" in meant:
        places = [place for place in places if place < len(row.response) - 1]
    if "before it" in meant:
        places = [place for place in places if place > 0]
    return all(abs(float(row.logprobs[place]) - float(values[place])) < 1e-3 for place in places)
