"""A conversation with a language model in a terminal, or over a pipe: one line of input is one turn."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from .chat import Sampling
from .contracts.data import Message, Prompt
from .errors import UserError
from .plugins import did_you_mean
from .run import device_of
from .text import encode_prompt

COMMANDS = {
    "/reset": "forget what was said",
    "/system TEXT": "say who the model is to be; without TEXT, nobody in particular",
    "/set NAME VALUE": "change a sampling option; alone, show them all",
    "/help": "this list",
    "/quit": "end (as Ctrl-D does; Ctrl-C stops an answer)",
}
# What a model writes must not move the cursor or rename the window: control characters are left out.
UNPRINTABLE = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


class Session:
    """A model, what was said so far, and how answers are sampled."""

    def __init__(self, folder: Path, sampling: Sampling, device: str = "auto") -> None:
        """Load the checkpoint in ``folder``."""
        self.sampling = sampling
        self.device = device_of(device)
        self.model, self.tokenizer = load(folder, self.device)
        self.system = ""
        self.turns: list[Message] = []
        self.out = Console(highlight=False, markup=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, style="dim")
        self.seed()
        size = sum(parameter.numel() for parameter in self.model.parameters())
        self.notes.print(f"{folder}: {size / 1e6:.3g} M parameters on {self.device}; /help lists commands")
        if not self.chats:
            self.notes.print("the model has no chat template: each line is continued by itself")

    @property
    def chats(self) -> bool:
        """Whether turns go through a chat template; else the model continues plain text."""
        return bool(self.tokenizer.chat_template)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(longest or self.tokenizer.model_max_length)

    def run(self) -> None:
        """Answer line after line until the input ends, or ``/quit``."""
        for line in lines():
            text = line.strip()
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    self.command(text)
                elif text:
                    self.answer(text)
            except UserError as error:  # a slip in a conversation does not end it
                self.notes.print(str(error))

    def command(self, text: str) -> None:
        """Obey a line that begins with a slash."""
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word == "/reset":
            self.turns.clear()
            self.notes.print("forgotten")
        elif word == "/system":
            self.system = rest
            self.notes.print(f"system message: {rest}" if rest else "no system message")
        elif word == "/set":
            self.set(*rest.split(maxsplit=1))
        elif word == "/help":
            self.notes.print("\n".join(f"{name:16} {what}" for name, what in COMMANDS.items()))
        else:
            words = [name.split()[0] for name in COMMANDS]
            raise UserError(f"{word}: no such command; there are {', '.join(words)}{did_you_mean(word, words)}")

    def set(self, name: str = "", text: str = "") -> None:
        """Change a sampling option, if one is named, and show them all."""
        if name:
            self.sampling.set(name, text)
            if name == "seed":
                self.seed()
        self.notes.print(str(self.sampling))

    def seed(self) -> None:
        """Start the random numbers anew."""
        if self.sampling.seed is None:
            torch.seed()
        else:
            torch.manual_seed(self.sampling.seed)

    def answer(self, text: str) -> None:
        """Stream the answer to one turn, and remember both; Ctrl-C cuts the answer short."""
        if not self.chats:
            self.turns.clear()
        self.turns.append(Message("user", text))
        try:
            tokens = self.fitting_tokens()
        except UserError:
            self.turns.pop()
            raise
        streamer = Streamer(self.tokenizer, self.out)
        try:
            self.generate(tokens, streamer)
        except RuntimeError as error:  # out of memory; probabilities that are not numbers
            self.turns.pop()
            raise UserError(f"no answer: {str(error).splitlines()[0]}") from error
        except KeyboardInterrupt:
            streamer.end()  # type: ignore[no-untyped-call]
            self.notes.print("(cut short)")
        self.turns.append(Message("assistant", streamer.text.strip()))

    def fitting_tokens(self) -> list[int]:
        """The tokens up to where the model speaks; the oldest turns go where there is no room for all."""
        room = self.context - min(self.sampling.max_new_tokens, self.context // 2)
        dropped = 0
        while len(tokens := self.tokens()) > room:
            if len(self.turns) == 1:
                raise UserError(f"too long: {len(tokens)} tokens, where the context of {self.context} leaves {room}")
            del self.turns[:2]
            dropped += 2
        if dropped:
            self.notes.print(
                f"(the context of {self.context} tokens is full: the oldest {dropped} turns are forgotten)"
            )
        return tokens

    def tokens(self) -> list[int]:
        """The whole conversation's tokens, as training encodes a prompt."""
        if not self.chats:
            return encode_prompt(self.tokenizer, Prompt(text=self.turns[-1].content))
        system = [Message("system", self.system)] if self.system else []
        return encode_prompt(self.tokenizer, Prompt(messages=(*system, *self.turns)))

    def generate(self, tokens: list[int], streamer: "Streamer") -> None:
        """Sample one answer."""
        row = torch.tensor([tokens], device=self.device)
        end = self.model.generation_config.eos_token_id
        pad = self.tokenizer.pad_token_id
        self.model.generate(
            row,
            attention_mask=torch.ones_like(row),
            streamer=streamer,
            max_new_tokens=min(self.sampling.max_new_tokens, self.context - len(tokens)),
            eos_token_id=self.tokenizer.eos_token_id if end is None else end,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            **self.sampling.generation(),
        )


class Streamer(TextStreamer):
    """Prints words as they are finished, and keeps them as ``text``."""

    def __init__(self, tokenizer: Any, console: Console) -> None:
        """Print to ``console``."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.console = console
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next piece."""
        piece = text.translate(UNPRINTABLE)
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        self.console.out(piece, end="\n" if stream_end else "", highlight=False)


def load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """The model, ready to sample, and its tokenizer."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{folder}: cannot be loaded ({cause})") from error
    return model.to(device).eval(), tokenizer


def lines() -> Iterator[str]:
    """Lines typed at a prompt, or read from a pipe, until the input ends or Ctrl-C."""
    try:
        if not sys.stdin.isatty():
            yield from sys.stdin
            return
        with contextlib.suppress(ImportError):  # not on every system
            import readline  # noqa: F401  # gives input() line editing and a history
        while True:
            yield input("› ")
    except (EOFError, KeyboardInterrupt):
        print()
