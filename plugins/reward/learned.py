"""A reward model learned from human rankings."""

from collections.abc import Sequence
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
        sequences = self.sequences(samples)
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            groups = within([len(sequence) for sequence in sequences], self.microbatch_tokens)
            parts = [
                self.model.last(Packed.of([sequences[i] for i in group], self.model.bias.device)) for group in groups
            ]
        self.model.train(training)
        return torch.cat(parts) if parts else torch.zeros(0)

    def sequences(self, samples: Samples) -> list[list[int]]:
        """Prompt, response and end token: the sampled tokens where the tokenizer is ours, else the text anew."""
        tokenizer = self.model.tokenizer
        end = tokenizer.eos_token_id
        if self.reads(samples.tokenizer):
            pairs: Sequence[tuple[Any, Any]] = list(zip(samples.prompt_ids, samples.response_ids, strict=True))
            return [
                [*prompt, *response, *([] if response and response[-1] == end else [end])] for prompt, response in pairs
            ]
        pairs = list(zip(samples.prompts, samples.responses, strict=True))
        return [encode_prompt(tokenizer, prompt) + encode_response(tokenizer, response) for prompt, response in pairs]

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
