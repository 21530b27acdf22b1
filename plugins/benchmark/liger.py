"""Liger's preference loss. Its other kernels start from hidden states or logits, which are other ops."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.bench.case import Case, widened


@dataclass
class Liger:
    """``liger_kernel.chunked_loss.dpo_loss``: the part of its fused DPO that comes after the log-probs."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "peer"
    ops: ClassVar[tuple[str, ...]] = ("preference_loss",)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Whether it is there."""
        return None if find_spec("liger_kernel") else "not installed"

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """It takes the number of pairs from the shape of the targets."""
        from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction  # imports Triton

        x, beta = case.packed, case.number("beta")
        targets = torch.empty(2 * len(x["chosen"]), 0, device=x["chosen"].device)

        def run() -> dict[str, Tensor]:
            loss, chosen_rewards, rejected_rewards = LigerFusedLinearDPOFunction.preference_loss_fn(
                widened(x["chosen"]), widened(x["rejected"]), targets, widened(x["ref_chosen"]),
                widened(x["ref_rejected"]), beta=beta,
            )  # fmt: skip
            return {
                "loss": loss,
                "chosen_reward": chosen_rewards.detach().mean(),
                "rejected_reward": rejected_rewards.detach().mean(),
            }

        return run
