"""TRL's fused head, which makes the logits a tile at a time and gives log-probs alone.

B rows, T tokens each, V vocabulary. The model is a stand-in: its hidden states are the logits, its head the identity.
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """``add_fused_lm_head``, then a forward with labels."""
    if not bool(logits.isfinite().all()):
        raise NotImplementedError("a fused head makes its logits itself: none of them is infinite")
    model = _Model(logits)
    import_module("trl.trainer.utils").add_fused_lm_head(model, temperature)
    found: Tensor = model(shift_labels=targets, fused_lm_head=True).log_probs
    return found


class _Model(nn.Module):
    """What the head asks a language model for."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(model_type="stand_in"))

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.hidden = SimpleNamespace(last_hidden_state=logits)
        self.head = SimpleNamespace(weight=torch.eye(logits.shape[-1], dtype=logits.dtype), bias=None)

    def base_model(self, **_: Any) -> SimpleNamespace:
        return self.hidden

    def get_output_embeddings(self) -> SimpleNamespace:
        return self.head

    def forward(self) -> None:
        """Without the fused head: never called."""
