"""The sequence of ops that frameworks really run: what the others are compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.bench.case import Case

from . import eager_attention, eager_gae, eager_logprobs, eager_losses

SEQUENCES: dict[str, Callable[[Case], Callable[[], dict[str, Tensor]]]] = {
    "shaped_gae": eager_gae.shaped_gae,
    "ppo_loss": eager_losses.ppo_loss,
    "grpo_loss": eager_losses.grpo_loss,
    "ranking_loss": eager_losses.ranking_loss,
    "preference_loss": eager_losses.preference_loss,
    "token_logprobs": eager_logprobs.token_logprobs,
    "token_logprobs_entropy": eager_logprobs.token_logprobs_entropy,
    "logprobs_from_logits": eager_logprobs.logprobs_from_logits,
    "linear_policy_loss": eager_logprobs.linear_policy_loss,
    "attention": eager_attention.attention,
    "attention_shared": eager_attention.attention,
    "decode_attention": eager_attention.decode_attention,
    "decode_attention_shared": eager_attention.decode_attention,
}


@dataclass
class Eager:
    """What transformers, TRL, verl and OpenRLHF run, op by op; each sequence names its source."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "baseline"
    ops: ClassVar[tuple[str, ...]] = tuple(SEQUENCES)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """It runs anywhere."""
        return None

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """The op's sequence."""
        return SEQUENCES[op](case)
