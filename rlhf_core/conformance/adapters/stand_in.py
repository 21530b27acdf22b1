"""What trainers of TRL read of themselves and is not a formula: an accelerator of one process, metrics, logs."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def accelerator() -> SimpleNamespace:
    """One process on the CPU: nothing to gather."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=lambda tensor: tensor,
        gather_for_metrics=lambda tensor: tensor,
        reduce=lambda tensor, reduction: tensor,
    )


def metrics() -> Any:
    """Where they are written to."""
    return defaultdict(lambda: defaultdict(list))


def frozen_model() -> nn.Module:
    """A module that is asked whether it trains and checkpoints, and does neither."""
    model = nn.Module().eval()
    model.is_gradient_checkpointing = False  # type: ignore[assignment]  # a plain bool, as in transformers
    return model
