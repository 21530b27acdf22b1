"""What a policy makes: a language model and a tokenizer that fit each other."""

from typing import Any

from ...contracts.data import Message, Prompt
from ...contracts.policy import Policy
from ...errors import UserError
from ...language_model import LanguageModel, unadapted
from ...text import encode_prompt
from ..check import Checks, fail, fail_if
from ..world import SmallData, World
from .policy_models import made, vocabulary

CHECKS = check = Checks()


@check(
    "language_model(data) gives a rlhf_core.language_model.LanguageModel",
    why="algorithms call its methods: logprobs, frozen, save",
    cure="return LanguageModel(model, tokenizer), with a transformers causal model and a tokenizer with an end token",
)
def gives_a_language_model(policy: Policy, world: World) -> None:
    """Or a subclass of it."""
    data = SmallData()
    data.setup(0)
    model = policy.language_model(data)
    fail_if(not isinstance(model, LanguageModel), came=f"it gave {type(model).__name__}")
    fail_if(not list(model.model.parameters()), came="its model has no parameters")


@check(
    "the tokenizer's tokens, its end token among them, have rows in the model",
    why="a token without a row is an index error in the middle of a run; without an end token no response ends",
    cure="give the tokenizer an eos_token, and the model a vocab_size of at least len(tokenizer)",
)
def the_tokenizer_fits_the_model(policy: Policy, world: World) -> None:
    """In its embedding and in its head."""
    model = made(policy, world)
    inner: Any = unadapted(model.model)
    rows, count = len(inner.get_input_embeddings().weight), len(model.tokenizer)
    fail_if(rows < count, came=f"the tokenizer has {count} tokens, the embedding {rows} rows")
    fail_if(vocabulary(model) < count, came=f"the tokenizer has {count} tokens, the head {vocabulary(model)} rows")
    end = model.tokenizer.eos_token_id
    fail_if(end is None, came="the tokenizer has no end token (eos_token is None)")
    fail_if(not 0 <= end < rows, came=f"the end token is {end}, and the model has {rows} rows")


@check(
    "text is the same after it was encoded and decoded",
    why="rewards read what is decoded, and demonstrations are learned as they are encoded",
    cure="give the tokenizer a decoder that undoes its pre-tokenizer, and a vocabulary that covers the data",
)
def text_survives_the_tokenizer(policy: Policy, world: World) -> None:
    """But for blanks at the ends; of the data that the policy was given."""
    tokenizer = made(policy, world).tokenizer
    for text in SmallData(3).text("train"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        back = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        fail_if(back != text, came=f"{text!r} is {tokens} and then {back!r}")
        fail_if(
            tokenizer.eos_token_id in tokens,
            came=f"{text!r} is {tokens}, with the end token {tokenizer.eos_token_id} in it",
            cure="let the tokenizer add no end token by itself: encode(text, add_special_tokens=False) is text alone",
        )


@check(
    "a chat prompt holds what was said and ends where the assistant speaks, or is refused",
    why="else the policy goes on in the user's name, or answers a question that it never read",
    cure="let the chat template write all messages, and the assistant's mark where add_generation_prompt is true",
)
def chat_prompts_end_where_the_assistant_speaks(policy: Policy, world: World) -> None:
    """By what the template makes of the same conversation with the answer in it."""
    tokenizer = made(policy, world).tokenizer
    turns = [{"role": "user", "content": "ask"}]
    try:
        tokens = encode_prompt(tokenizer, Prompt(messages=(Message("user", "ask"),)))
    except UserError:
        return  # it has no template, or takes no such conversation, and says so
    fail_if(not tokens, came="the prompt has no tokens")
    prompt = _text(tokenizer, turns, add_generation_prompt=True)
    fail_if("ask" not in prompt, came=f"of the user's 'ask' the template makes {prompt!r}")
    whole = _text(tokenizer, [*turns, {"role": "assistant", "content": "right"}])
    if not whole.startswith(prompt) and not whole.startswith(prompt.rstrip()):
        fail(came=f"the prompt is {prompt!r}, and with the answer 'right' the conversation is {whole!r}")
    before = whole[len(prompt.rstrip()) :].split("right", 1)[0].strip()
    if before and prompt == _text(tokenizer, turns):
        fail(came=f"the prompt {prompt!r} lacks {before!r}, which stands before the assistant's answers")


def _text(tokenizer: Any, turns: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))
