"""Supervised fine-tuning: imitate the responses people wrote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_core.contracts.data import Demonstration, Split
from rlhf_core.optimizer import AdamW
from rlhf_core.text import encode_prompt, encode_response

from .lm import LM, Example


@dataclass
class SFT(LM):
    """Imitation of demonstrations: −1/N · Σ log π(y_t | x, y_<t) (Ouyang et al. 2022, arXiv:2203.02155, §3.5)."""

    rlhf_api: ClassVar[int] = 1

    epochs: float = 2.0  # passes over the data
    batch_size: int = 32  # demonstrations an optimiser step
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-3, weight_decay=0.1, warmup_steps=20))

    def read(self, split: Split) -> list[Example]:
        """The prompt is given, the response and its end token are predicted."""
        return self.encoded(self.run.data.demonstrations(split))

    def encoded(self, rows: Iterable[Demonstration]) -> list[Example]:
        """Demonstrations in tokens."""
        tokenizer = self.model.tokenizer
        return self.fitting((encode_prompt(tokenizer, x.prompt), encode_response(tokenizer, x.response)) for x in rows)

    def fitting(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[Example]:
        """Prompts and responses in tokens as examples of at most ``max_length``."""
        fit = ((prompt, response) for prompt, response in pairs if len(prompt) < self.max_length)
        return [([*prompt, *response][: self.max_length], len(prompt)) for prompt, response in fit]
