"""Direct preference optimisation: the policy is its own reward model.

P pairs.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlhf_core import kernels
from rlhf_core.errors import at_least

from .pairs import Pairs
from .preference import Preference, check_smoothing


@dataclass
class DPO(Preference):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    loss = −mean over pairs of (1 − ε)·log σ(h) + ε·log σ(−h),  h = β·[log π(y⁺)/π_ref(y⁺) − log π(y⁻)/π_ref(y⁻)];
    ε > 0 takes that share of the labels to be wrong: conservative DPO. Where people choose by Bradley–Terry with
    rewards r, the optimum is π ∝ π_ref·exp(r/β). The loss widens a difference, even where both log-probs fall and
    responses grow longer; α·mean of −1/|y⁺|·log π(y⁺) holds against it (RPO, Pang et al. 2024, arXiv:2404.19733).
    """

    rlhf_api: ClassVar[int] = 1

    beta: float = 0.1  # β, the price of a nat of KL to the reference
    label_smoothing: float = 0.0  # ε, the share of labels taken to be wrong, below ½
    reference_free: bool = False  # the reference counts as uniform
    imitation: float = 0.0  # α, the weight of imitating the better response; RPO's is 1

    @property
    def referenced(self) -> bool:
        """Whether the objective compares with the policy as it started."""
        return not self.reference_free

    def check(self) -> None:
        """As every preference algorithm, and ε."""
        super().check()
        at_least(0, algorithm__imitation=self.imitation)
        check_smoothing(self.label_smoothing)

    def objective(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """−log σ(h), smoothed, and imitation."""
        loss, metrics = kernels.preference_loss(
            pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected,
            kind="dpo", beta=self.beta, label_smoothing=self.label_smoothing,
        )  # fmt: skip
        return loss + self.imitation * pairs.imitation, metrics
