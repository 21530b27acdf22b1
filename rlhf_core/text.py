"""From text to tokens and back: what a tokenizer and its chat template make of prompts and responses."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from .contracts.data import Prompt
from .errors import UserError


def encode_document(tokenizer: Any, text: str) -> list[int]:
    """A document: end token, text, end token, so that its first word is predicted too."""
    return [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A chat prompt through the chat template up to where the assistant speaks, a plain one as it is."""
    if not prompt.messages:
        return tokenizer.encode(prompt.text, add_special_tokens=False) or [tokenizer.eos_token_id]
    if not tokenizer.chat_template:
        raise UserError(
            "policy: its tokenizer has no chat template; take a chat model or plain text (data=jsonl data.chat=false)"
        )
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses this conversation: {error}") from error


def encode_response(tokenizer: Any, text: str) -> list[int]:
    """A response and the end token."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text for people and for rewards that read text."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()
