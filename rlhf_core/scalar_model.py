"""A transformers model with one number a token: the reward model and the critic.

N packed tokens, B sequences, H hidden size.
"""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .batch import Packed
from .language_model import hidden_states, run_packed, unadapted


class ScalarModel(nn.Module):
    """A ``…ForSequenceClassification`` model with one label, read at every token of a packed row.

    ``bias`` is subtracted from each score; it is set so that demonstrations score 0 on average (Ouyang et al. 2022,
    arXiv:2203.02155, §3.5) and travels in the checkpoint's config as ``score_bias``.
    """

    bias: Tensor

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        """Take a model (plain, or wrapped by peft) and the tokenizer whose tokens it reads."""
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        run_packed(model)
        base = unadapted(model)
        self.head.float()  # one small layer; in bfloat16 its updates would be rounded away
        self.register_buffer("bias", torch.tensor(float(getattr(base.config, "score_bias", 0.0))))

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        score = unadapted(self.model).score
        copies = getattr(score, "modules_to_save", None)  # peft trains a copy of it
        return cast(nn.Linear, score if copies is None else copies["default"])

    def _score(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.head(hidden.to(self.head.weight.dtype))
        return scores.float()[:, 0] - self.bias

    def reset_head(self, std: float) -> None:
        """Normal weights of standard deviation ``std``; 0 gives a head of zeros, as a critic starts."""
        with torch.no_grad():
            self.head.weight.normal_(0, std) if std else self.head.weight.zero_()
            self.bias.zero_()

    def forward(self, packed: Packed) -> Tensor:
        """``[N]`` float32, one number a token."""
        return packed.folded.unfolded(self._score(hidden_states(self.model, packed)))

    def last(self, packed: Packed) -> Tensor:
        """``[B]`` float32, the number at each sequence's last token."""
        rows, last = packed.folded.rows, packed.cu_seqlens[1:].long() - 1
        return self._score(hidden_states(self.model, packed)[last if rows is None else rows[last]])

    def save(self, folder: Path) -> None:
        """A plain transformers checkpoint, adapters merged, the bias in its config."""
        model: Any = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        model.config.score_bias = float(self.bias)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
