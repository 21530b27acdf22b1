"""A reward model learned from human rankings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_core.batch import Packed
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_core.packing import within
from rlhf_core.run import Run
from rlhf_core.scalar_model import ScalarModel
from rlhf_core.text import encode_prompt, encode_response

from ..policy.hf import dtype_of


class ModelScorer:
    """Scores samples with a scalar model, read at each response's end token."""

    def __init__(self, model: ScalarModel, microbatch_tokens: int) -> None:
        """``microbatch_tokens`` bounds one forward."""
        self.model, self.microbatch_tokens = model, microbatch_tokens
        self._same: dict[int, bool] = {}  # by id of a tokenizer: are its tokens ours?

    def setup(self, run: Run) -> None:
        """Nothing more to load."""

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 scores, of dropout-free forward passes."""
        packed = Packed.answers(*self.pairs(samples), device=self.model.bias.device)
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            groups = within(packed.costs, self.microbatch_tokens)
            parts = [self.model.last(packed.slice(group[0], group[-1] + 1)) for group in groups]
        self.model.train(training)
        return torch.cat(parts) if parts else torch.zeros(0)

    def pairs(self, samples: Samples) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts, and responses with the end token: sampled tokens where the tokenizer is ours, else the text anew."""
        tokenizer = self.model.tokenizer
        end = tokenizer.eos_token_id
        if self.reads(samples.tokenizer):
            responses = [list(response) for response in samples.response_ids]
            ended = [response if response and response[-1] == end else [*response, end] for response in responses]
            return [list(prompt) for prompt in samples.prompt_ids], ended
        prompts = [encode_prompt(tokenizer, prompt) for prompt in samples.prompts]
        return prompts, [encode_response(tokenizer, response) for response in samples.responses]

    def reads(self, tokenizer: Any) -> bool:
        """Whether tokens of ``tokenizer`` are ours too."""
        if tokenizer is None:
            return False
        key = id(tokenizer)
        if key not in self._same:
            self._same[key] = tokenizer.get_vocab() == self.model.tokenizer.get_vocab()
        return self._same[key]


@dataclass
class Learned:
    """A reward model that a ``reward_model`` stage wrote; demonstrations score 0 on average."""

    rlhf_api: ClassVar[int] = 1

    path: str = "???"  # its result folder
    scale: float = 1.0  # the score is multiplied by this
    dtype: str = "float32"  # of the weights: float32 or bfloat16

    def setup(self, run: Run) -> None:
        """Load the checkpoint."""
        dtype = dtype_of(self.dtype, "reward.dtype")
        try:
            config = AutoConfig.from_pretrained(self.path)
            if config.num_labels != 1:  # told before transformers fills in a head it does not find
                raise UserError(
                    f"reward.path: {self.path!r} holds {' '.join(config.architectures or ['another model'])}, "
                    "expected a reward_model stage's result"
                )
            model = AutoModelForSequenceClassification.from_pretrained(self.path, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(self.path)
        except (OSError, ValueError, SafetensorError) as error:
            hint = f"; the checkpoint is {self.path}/result" if (Path(self.path) / "result").exists() else ""
            raise UserError(
                f"reward.path: no reward model in {self.path!r}{hint} (expected a reward_model stage's result)"
            ) from error
        scalar = ScalarModel(model, tokenizer).requires_grad_(False).eval().to(run.device)
        self.scorer = ModelScorer(scalar, run.microbatch_tokens)

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 scores."""
        return self.scale * self.scorer.score(samples)
