"""Decoupled clip and dynamic sampling: GRPO for long chains of thought.

B sequences in groups of G.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlhf_core.advantages import flat_groups
from rlhf_core.errors import UserError, at_least
from rlhf_core.experience import Experience, Scored, joined, sequences
from rlhf_core.run import Run

from .grpo import GRPO


@dataclass
class DAPO(GRPO):
    """DAPO (Yu et al. 2025, arXiv:2503.14476): GRPO with a higher upper clip, a token mean, and no KL.

    loss = −1/Σ|o_i| Σ_i Σ_t min(ρ_t·A_i, clip(ρ_t, 1−ε, 1+ε_high)·A_i).
    Groups whose scores are all alike are sampled anew (eq. 11). r_i gains the soft overlong punishment (eq. 13): with
    L_max the longest allowed and L_cache a buffer, 0 up to L_max − L_cache tokens, then falling to −1 at L_max.
    """

    rlhf_api: ClassVar[int] = 1

    kl_coef: float = 0.0  # β, the weight of the KL to the reference
    clip_high: float | None = 0.28  # the upper side
    aggregate: str = "token"  # every token counts the same
    sampling_rounds: int = 4  # most times prompts are drawn until all groups have different scores; 1: just once
    overlong_buffer: int = 8  # L_cache, tokens before the longest allowed; 0: no punishment

    def setup(self, run: Run) -> nn.Module:
        """As GRPO."""
        at_least(1, algorithm__sampling_rounds=self.sampling_rounds)
        at_least(0, algorithm__overlong_buffer=self.overlong_buffer)
        self.longest = getattr(run.rollout, "max_new_tokens", None)
        if self.overlong_buffer and self.longest is None:
            raise UserError("algorithm.overlong_buffer: the rollout names no max_new_tokens; set 0")
        return super().setup(run)

    def sample(self, step: int) -> Scored:
        """Groups with different scores, from new prompts until there are enough; what is missing stays flat."""
        kept: list[Scored] = []
        for number in range(step * self.sampling_rounds, (step + 1) * self.sampling_rounds):
            scored = super().sample(number)
            last = number + 1 == (step + 1) * self.sampling_rounds
            room = self.batch_size - sum(len(part.scores) // self.responses for part in kept)
            kept.append(
                scored.select(sequences(wanted(scored.totals, self.responses, room, fill=last), self.responses))
            )
            if len(kept[-1].scores) == room * self.responses:
                break
        return joined(kept)

    def advantages(self, old: Experience, group: int) -> Experience:
        """GRPO's, of scores with the overlong punishment."""
        lengths = old.per_sequence(old.mask.float())
        return super().advantages(replace(old, scores=old.scores + self.overlong(lengths)), group)

    def overlong(self, lengths: Tensor) -> Tensor:
        """``[B]`` the soft punishment of responses of so many tokens, from −1 to 0."""
        if not self.overlong_buffer or self.longest is None:
            return torch.zeros_like(lengths)
        return ((self.longest - self.overlong_buffer - lengths) / self.overlong_buffer).clamp(-1, 0)


def wanted(scores: Tensor, group: int, room: int, fill: bool) -> Sequence[int]:
    """The first ``room`` groups whose scores differ; with ``fill`` flat ones too, after those."""
    flat = flat_groups(scores, group).tolist()
    different = [index for index, same in enumerate(flat) if not same]
    alike = [index for index, same in enumerate(flat) if same]
    return (different + alike if fill else different)[:room]
