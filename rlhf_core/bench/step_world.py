"""What both sides of ``rlhf bench step peer=…`` start from: a checkpoint, prompts, and a reward that counts tokens.

B responses.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..contracts.reward import Samples
from ..errors import UserError
from ..run import Run

END, PAD = "<|end|>", "<|pad|>"
BATCHES = 8
"""of different prompts, before they come again"""


@dataclass(frozen=True)
class World:
    """The work of a step: a Llama with random weights, prompts of random words, and how much is sampled."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    intermediate: int = 688
    prompts: int = 8  # a step
    prompt_tokens: int = 64
    responses: int = 8  # a prompt
    new_tokens: int = 64  # longest response
    temperature: float = 1.0
    kl_coef: float = 0.04
    lr: float = 1e-5

    @property
    def batch(self) -> int:
        """Responses a step: one optimiser step is on all of them."""
        return self.prompts * self.responses

    def checked(self) -> "World":
        """This world, if there is a model of it and a group to compare within."""
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise UserError(f"hidden={self.hidden}: expected a multiple of twice heads={self.heads}")
        if self.responses < 2 or self.vocabulary < 16:
            raise UserError(f"responses={self.responses} vocabulary={self.vocabulary}: expected at least 2 and 16")
        return self

    def model(self) -> LlamaForCausalLM:
        """The same random weights each time."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.prompt_tokens + self.new_tokens,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
        return LlamaForCausalLM(config)

    def tokenizer(self) -> Any:
        """A token a word."""
        words = [END, PAD, *(f"w{number}" for number in range(self.vocabulary - 2))]
        tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
        )

    def texts(self) -> list[str]:
        """``BATCHES`` steps' prompts."""
        shape, generator = (BATCHES * self.prompts, self.prompt_tokens), torch.Generator().manual_seed(1)
        drawn = torch.randint(0, self.vocabulary - 2, shape, generator=generator).tolist()
        return [" ".join(f"w{number}" for number in row) for row in drawn]

    def write(self, folder: Path) -> None:
        """``model/``, a checkpoint with its tokenizer, and ``prompts.jsonl``."""
        self.model().save_pretrained(folder / "model")
        self.tokenizer().save_pretrained(folder / "model")
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in self.texts())
        (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")


class DistinctWords:
    """How many different words a response has, as a reward of either side; it keeps what it is shown.

    Attributes:
        lengths: tokens of each response, the end token counted.
    """

    __name__ = "distinct_words"  # TRL asks functions for it

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.lengths: list[int] = []

    def setup(self, run: Run) -> None:
        """Nothing to load."""

    def score(self, samples: Samples) -> torch.Tensor:
        """``[B]`` float32, for our side."""
        return torch.tensor(self._count(samples.responses, samples.response_ids))

    def __call__(self, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """B numbers, for TRL, which passes all it knows."""
        return self._count(completions, completion_ids)

    def _count(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[float]:
        self.lengths += map(len, ids)
        return [float(len(set(text.split()))) for text in texts]


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
