"""Estimators of KL(π‖π_ref) in nats from one sampled token, d = log π − log π_ref.

k1 = d               unbiased, of either sign; its mean's gradient has expectation zero, so it is useless as a loss
k2 = d²/2            biased; its gradient is the unbiased one of KL(π‖π_ref)
k3 = e^{−d} − 1 + d  unbiased, never negative, less variance; its gradient is that of KL(π_ref‖π)

Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html
"""

import torch
from torch import Tensor

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(d: Tensor, estimator: str) -> Tensor:
    """The estimate for each difference of log-probs ``d`` (any shape), in nats."""
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    return torch.expm1(-d) + d
