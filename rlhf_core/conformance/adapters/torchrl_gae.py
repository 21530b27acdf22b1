"""torchrl's GAE on padded rows: it has no mask, so a row has to be one piece from its first slot on.

B rows, T slots each.
"""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

Gae = Callable[..., tuple[Tensor, Tensor]]


def estimator(prefix: str) -> Gae:
    """``generalized_advantage_estimate``, or with ``vec_`` before it the one that is a convolution."""

    def gae(
        rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise NotImplementedError("torchrl's GAE has no mask: a row cannot have gaps")
        functional = import_module("torchrl.objectives.value.functional")
        done, following = _end(mask), torch.nn.functional.pad(values[:, 1:], (0, 1))
        terminated = done
        if bootstrap is not None:  # a truncated row is done, but not terminated
            terminated = done & (bootstrap == 0)[:, None]
            following = torch.where(done, bootstrap[:, None], following)
        advantages, returns = getattr(functional, f"{prefix}generalized_advantage_estimate")(
            gamma, lam, values[..., None], following[..., None], rewards[..., None], done[..., None],
            terminated[..., None],
        )  # fmt: skip
        return advantages[..., 0], returns[..., 0]

    return gae


def _end(mask: Tensor) -> Tensor:
    """True at the last valid token of each row, and at its last slot."""
    end = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    end[:, -1] = True
    return end
