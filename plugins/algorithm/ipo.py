"""Identity preference optimisation: a margin to reach instead of one to widen.

P pairs.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlhf_core import kernels

from .pairs import Pairs
from .preference import Preference


@dataclass
class IPO(Preference):
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    loss = mean over pairs of (h − 1/(2τ))²,  h = log π(y⁺)/π_ref(y⁺) − log π(y⁻)/π_ref(y⁻), each log-ratio divided by
    its response's number of tokens: the margin of 1/(2τ) nats is one a token. A preference that never fails, which DPO
    would widen without end, stays at that margin.
    """

    rlhf_api: ClassVar[int] = 1

    beta: float = 0.1  # τ; half its inverse is the margin, in nats a token

    def objective(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """(h − 1/(2τ))²."""
        return kernels.preference_loss(
            pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected, kind="ipo", beta=self.beta,
            chosen_lengths=pairs.chosen_lengths, rejected_lengths=pairs.rejected_lengths,
        )  # fmt: skip
