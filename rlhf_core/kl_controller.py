"""The coefficient of the KL reward: fixed, or steered towards a target."""

from dataclasses import dataclass

from .errors import UserError, at_least


@dataclass
class KLController:
    """β of the per-token reward −β · log π/π_ref (Ziegler et al. 2019, arXiv:1909.08593, §2.2).

    With a ``target`` it follows β ← β · (1 + clip(KL/target − 1, ±0.2) · min(1, episodes/horizon)).

    Attributes:
        coef: β now.
        target: nats a response; None keeps β fixed.
        horizon: episodes (responses) over which β follows.
    """

    coef: float
    target: float | None = None
    horizon: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot steer."""
        if self.target is not None and self.target <= 0:
            raise UserError(f"algorithm.kl_target: got {self.target}, expected more than 0 nats a response, or null")
        at_least(1, algorithm__kl_horizon=self.horizon)

    def update(self, kl: float, episodes: int) -> None:
        """Follow the KL (nats a response) of a rollout of ``episodes`` responses."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * min(1.0, episodes / self.horizon)
