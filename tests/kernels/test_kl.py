"""The KL estimators against the exact KL of a categorical distribution (CORRECTNESS 9)."""

import pytest
import torch

from rlhf_core import kernels

LOGITS = torch.tensor([0.3, -1.2, 0.8, 0.0, 2.0], dtype=torch.float64)
REF = torch.tensor([-0.5, 0.4, 1.0, 0.2, 0.1], dtype=torch.float64).log_softmax(0)


def exact(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum()


def expected(estimator: str, logits: torch.Tensor) -> torch.Tensor:
    """E over samples of the estimate; the sampling probabilities are constants, as they are in training."""
    logprobs = logits.log_softmax(0)
    return (logprobs.detach().exp() * kernels.kl_estimate(logprobs - REF, estimator)).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased(estimator: str) -> None:
    torch.testing.assert_close(expected(estimator, LOGITS), exact(LOGITS.log_softmax(0), REF))


def test_k2_is_close_where_the_policies_are() -> None:
    near = REF + 0.01 * LOGITS
    torch.testing.assert_close(expected("k2", near), exact(near.log_softmax(0), REF), rtol=0.02, atol=0)


def gradient(loss) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(loss(logits), logits)[0]


def test_gradients_of_the_expectation() -> None:
    """k1 has none, k2 has that of KL(π‖ref), k3 that of KL(ref‖π)."""
    torch.testing.assert_close(gradient(lambda x: expected("k1", x)), torch.zeros_like(LOGITS), rtol=0, atol=1e-15)
    forward = gradient(lambda x: exact(x.log_softmax(0), REF))
    torch.testing.assert_close(gradient(lambda x: expected("k2", x)), forward)
    torch.testing.assert_close(gradient(lambda x: expected("k3", x)), gradient(lambda x: exact(REF, x.log_softmax(0))))


def test_k3_keeps_small_differences() -> None:
    """Exactly d²/2 to first order, where e^{−d} − 1 + d in float32 would be rounding noise."""
    d = torch.tensor([1e-3])
    torch.testing.assert_close(kernels.kl_estimate(d, "k3"), d * d / 2, rtol=1e-3, atol=0)
