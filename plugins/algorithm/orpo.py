"""Odds-ratio preference optimisation: imitation of the better response, and odds against the worse one.

P pairs.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlhf_core import kernels

from .pairs import Pairs
from .preference import Preference


@dataclass
class ORPO(Preference):
    """ORPO (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7); no reference.

    loss = mean over pairs of −log p⁺ − λ·log σ(log odds p⁺ − log odds p⁻),  odds p = p/(1 − p),
    log p = 1/|y| Σ_t log π(y_t | x, y_<t).
    """

    rlhf_api: ClassVar[int] = 1

    beta: float = 0.1  # λ, the weight of the odds ratio beside the imitation
    pairs: str = "best"  # all untied pairs of a ranking, or best: its best against its worst, so only that is imitated

    @property
    def referenced(self) -> bool:
        """Whether the objective compares with the policy as it started."""
        return False

    def objective(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Imitation and the odds ratio."""
        return kernels.preference_loss(
            pairs.chosen, pairs.rejected, kind="orpo", beta=self.beta,
            chosen_lengths=pairs.chosen_lengths, rejected_lengths=pairs.rejected_lengths,
        )  # fmt: skip
