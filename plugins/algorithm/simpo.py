"""Simple preference optimisation: the mean log-prob of a token is the reward.

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
class SimPO(Preference):
    """SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6); no reference.

    loss = −mean over pairs of log σ(β/|y⁺|·log π(y⁺) − β/|y⁻|·log π(y⁻) − γ). Nothing holds the policy to its start;
    α·mean of −1/|y⁺|·log π(y⁺) holds it to the better responses (CPO, Xu et al. 2024, arXiv:2401.08417).
    """

    rlhf_api: ClassVar[int] = 1

    beta: float = 2.0  # β, of a token's mean log-prob
    margin: float = 1.0  # γ, by how much the better response's reward is to exceed the other's
    imitation: float = 0.0  # α, the weight of imitating the better response; CPO's is 1
    label_smoothing: float = 0.0  # the share of labels taken to be wrong, below ½

    @property
    def referenced(self) -> bool:
        """Whether the objective compares with the policy as it started."""
        return False

    def check(self) -> None:
        """As every preference algorithm, γ, α and the smoothing."""
        super().check()
        at_least(0, algorithm__margin=self.margin, algorithm__imitation=self.imitation)
        check_smoothing(self.label_smoothing)

    def objective(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """−log σ of the difference of rewards, less γ, and imitation."""
        loss, metrics = kernels.preference_loss(
            pairs.chosen, pairs.rejected, kind="simpo", beta=self.beta, margin=self.margin,
            label_smoothing=self.label_smoothing,
            chosen_lengths=pairs.chosen_lengths, rejected_lengths=pairs.rejected_lengths,
        )  # fmt: skip
        return loss + self.imitation * pairs.imitation, metrics
