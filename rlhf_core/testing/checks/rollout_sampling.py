"""How the checks have an engine sample: its settings, models whose answers are known, what a fresh forward says.

V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from ...batch import Packed
from ...contracts.rollout import Rollout, RolloutEngine
from ...errors import UserError
from ...language_model import LanguageModel, hidden_states
from ..check import NotApplicable
from ..world import ASK, ASSISTANT, END, LEFT, OTHER, PAD, RIGHT, USER, WORDS, World, language_model, word_tokenizer

PROMPTS = [
    [ASK, LEFT, ASK], [USER, ASK, OTHER, LEFT, RIGHT, ASSISTANT], [ASK], [ASK], [OTHER, ASK], [ASK, LEFT, ASK], [RIGHT],
]  # fmt: skip
"""Of different lengths, with equal ones side by side and apart."""

MANY = PROMPTS * 2

LIMITS = ("max_new_tokens", "max_tokens", "new_tokens", "max_response_tokens", "response_length", "max_response_length")
"""What engines call the longest response; one of another name keeps its own."""

NEXT = {
    USER: ASSISTANT, ASSISTANT: ASK, ASK: LEFT, LEFT: RIGHT, RIGHT: OTHER, OTHER: END, PAD: END, END: END,
}  # fmt: skip
"""What the model that recites says after each word."""


def plain(engine: RolloutEngine, limit: int = 6, **settings: float) -> RolloutEngine:
    """The engine with short responses, at temperature 1 and without a nucleus where that can be set.

    Args:
        engine: as the check was given it.
        limit: tokens a response, where the engine has a setting of a common name.
        settings: ``temperature`` and ``top_p``, where a check asks for others.

    Raises:
        NotApplicable: the engine does not take one of ``settings``.
    """
    known: tuple[Any, ...] = dataclasses.fields(engine) if dataclasses.is_dataclass(engine) else ()
    fields = {field.name for field in known if field.init}
    if refused := [name for name in settings if name not in fields]:
        raise NotApplicable(f"its {refused[0]} is not a setting")
    wanted: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0} | settings
    wanted |= {name: limit for name in LIMITS}
    taken = {name: value for name, value in wanted.items() if name in fields}
    return dataclasses.replace(engine, **taken) if taken else engine  # type: ignore[type-var]


def sample(
    engine: RolloutEngine,
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """One call on a copy of the model: what the engine leaves behind in it is not what every check is about."""
    generator = torch.Generator().manual_seed(seed) if generator is None else generator
    return sample_by(engine, deepcopy(model), prompts, generator)


def sample_by(
    engine: RolloutEngine,
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator | None = None,
) -> Rollout:
    """One call on the model itself, with gradients on as in training; a grad mode that is left behind ends here."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.enable_grad():
        return engine.generate(model, [list(prompt) for prompt in prompts], generator)


def sample_or_skip(engine: RolloutEngine, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> Rollout:
    """The same, of settings or a model that an engine may refuse."""
    try:
        return sample(engine, model, prompts)
    except UserError as refusal:
        raise NotApplicable(f"it refuses that: {refusal}") from refusal


def plain_or_skip(engine: RolloutEngine, **settings: float) -> RolloutEngine:
    """The engine with settings that it may refuse when it is made."""
    try:
        return plain(engine, **settings)  # type: ignore[arg-type]
    except UserError as refusal:
        raise NotApplicable(f"it refuses that: {refusal}") from refusal


@dataclass(frozen=True)
class Row:
    """One response as far as it can be read: up to its end token, and to a token that the vocabulary does not have."""

    number: int
    prompt: list[int]
    response: list[int]
    logprobs: Tensor
    chosen: list[bool]

    @property
    def said(self) -> list[int]:
        """The places of tokens that the policy chose and that have a log-prob."""
        return [place for place in range(min(len(self.response), len(self.logprobs))) if self.chosen[place]]


def rows(rollout: Rollout, prompts: Sequence[Sequence[int]], model: LanguageModel) -> list[Row]:
    """The responses to ``prompts``, those that are not empty."""
    words = len(model.model.get_input_embeddings().weight)  # type: ignore[operator]
    found = []
    for number, (prompt, response) in enumerate(zip(prompts, rollout.responses, strict=False)):
        if number >= len(rollout.logprobs):
            break
        tokens = [int(token) for token in response]
        chosen = [bool(flag) for flag in rollout.chosen[number]] if number < len(rollout.chosen) else []
        chosen += [True] * (len(tokens) - len(chosen))
        last = next((place for place, token in enumerate(tokens) if token == model.end and chosen[place]), len(tokens))
        odd = next((place for place, token in enumerate(tokens) if not 0 <= token < words), len(tokens))
        tokens = tokens[: min(last + 1, odd)]
        logprobs = torch.as_tensor(rollout.logprobs[number]).detach().flatten().float().cpu()
        if tokens:
            found.append(Row(number, list(prompt), tokens, logprobs, chosen))
    return found


def fresh(model: LanguageModel, found: Sequence[Row], temperature: float) -> list[Tensor]:
    """``[length, V]`` log-probs of all words at each token of each response, by one forward over what was written."""
    packed = Packed.of([[*row.prompt, *row.response] for row in found], model.device)
    with model.evaluating():
        full = model.next_token(temperature)(hidden_states(model.model, packed)).cpu()
    return [part[len(row.prompt) - 1 : -1] for row, part in zip(found, packed.split(full), strict=True)]


def reciting(world: World) -> LanguageModel:
    """A model that says ``NEXT`` of the last word, whatever is drawn."""
    model = language_model(word_tokenizer())
    llama: Any = model.model
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        llama.get_input_embeddings().weight.copy_(torch.eye(len(NEXT), 32))
        head = llama.get_output_embeddings().weight.zero_()
        for word, following in NEXT.items():
            head[following, word] = 20.0
    llama.to(world.device).eval()
    return model


def misplaced(engine: RolloutEngine, world: World, count: int) -> tuple[str, str]:
    """Which response does not answer its prompt, and what to do where that is told; empty where all do."""
    ends = (ASK, LEFT, RIGHT, USER, ASSISTANT)  # none that is followed by the end
    prompts = [[ASK] * ((5 * number) % 7) + [ends[number % len(ends)]] for number in range(count)]
    rollout = sample(plain(engine, limit=3), reciting(world), prompts)
    for number, (prompt, response) in enumerate(zip(prompts, rollout.responses, strict=False)):
        found, wanted = [int(token) for token in response], NEXT[prompt[-1]]
        if found[: len(prompt)] == prompt and prompt[0] != wanted:
            cure = "cut the prompt off: a response has the new tokens alone"
            return f"response {number}, {words_of(found)!r}, begins with its prompt", cure
        if found[:1] != [wanted]:
            came = f"response {number} to {words_of(prompt)!r} is {words_of(found)!r}"
            return f"{came}, from a model that surely goes on with {WORDS[wanted]!r}", ""
    return "", ""


def needs_order(engine: RolloutEngine, world: World) -> None:
    """Leave responses that are not in the place of their prompts to the one check that is about it."""
    if misplaced(engine, world, 12)[0]:
        raise NotApplicable("its responses do not answer the prompts in their places")


def words_of(tokens: Sequence[int]) -> str:
    """As people read them."""
    return " ".join(WORDS[token] if 0 <= token < len(WORDS) else str(token) for token in tokens)


def counting(world: World) -> LanguageModel:
    """A model that learned a vector for each place, as GPT-2 does, with dropout while it trains."""
    config = GPT2Config(
        vocab_size=len(NEXT), n_embd=32, n_layer=2, n_head=1, n_positions=4096, initializer_range=0.2, attn_pdrop=0.0,
        resid_pdrop=0.3, embd_pdrop=0.3, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LanguageModel(GPT2LMHeadModel(config), word_tokenizer())
    model.model.to(world.device).eval()
    return model


def padded_with_the_end(world: World) -> LanguageModel:
    """A model whose tokenizer pads with its end token, as many do."""
    model = language_model(word_tokenizer())
    model.tokenizer.pad_token = model.tokenizer.eos_token
    model.model.to(world.device).eval()
    return model


def probability_of(counts: Tensor, probabilities: Tensor) -> float:
    """How probable counts this far from ``[V]`` probabilities are: a χ² test, rare words taken together."""
    expected = probabilities.double() * counts.sum()
    rare = expected < 5
    seen, wanted = (
        torch.cat([values[~rare].double(), values[rare].sum()[None].double()]) for values in (counts, expected)
    )
    statistic = ((seen - wanted).square() / wanted.clamp(min=1e-6)).sum()
    freedom = torch.tensor(max(1, len(wanted) - 1 - int(not bool(rare.any()))), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))
