"""The optimiser's configuration: AdamW (Loshchilov & Hutter, arXiv:1711.05101) with warm-up and decay."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from torch import nn, optim

SCHEDULES = ("linear", "cosine", "constant")


@dataclass
class AdamW:
    """AdamW, a warm-up and a schedule; ``lr`` is the highest rate."""

    lr: float = 1e-3  # the highest learning rate
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment; PPO's papers say 1e-5
    weight_decay: float = 0.0  # on matrices only, never on norms and biases
    warmup_steps: int = 0  # over which the rate rises
    schedule: str = "linear"  # linear, cosine or constant
    final_lr: float = 0.0  # where the schedule ends, as a share of lr
    max_grad_norm: float = 1.0  # the gradient's norm is clipped to this; 0 does not clip

    def build(self, module: "nn.Module") -> "optim.Optimizer":
        """The optimiser of the parameters that require gradients."""
        from torch import optim  # torch is heavy, and `rlhf info` reads this file

        if self.schedule not in SCHEDULES:
            raise UserError(
                f"algorithm.optimizer.schedule: got {self.schedule!r}, expected one of {', '.join(SCHEDULES)}"
            )
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True,
        )  # fmt: skip

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of step ``step`` (0-based) of ``total``."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        done = step / max(total, 1)
        shape = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[self.schedule]
        return self.lr * warm * (self.final_lr + (1 - self.final_lr) * shape)
