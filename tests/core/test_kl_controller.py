"""The adaptive KL coefficient against its formula."""

import pytest

from rlhf_core.errors import UserError
from rlhf_core.kl_controller import KLController


@pytest.mark.parametrize(
    ("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (7.2, 0.2), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)]
)
def test_formula(kl, error):
    controller = KLController(0.05, target=6.0, horizon=1000)
    controller.update(kl, episodes=64)
    assert controller.coef == pytest.approx(0.05 * (1 + error * 64 / 1000), rel=1e-12)


def test_it_counts_episodes_not_steps():
    once, twice = KLController(1.0, target=4.0, horizon=512), KLController(1.0, target=4.0, horizon=512)
    once.update(100.0, episodes=128)
    twice.update(100.0, episodes=64)
    assert once.coef - 1 == pytest.approx(2 * (twice.coef - 1))


def test_without_a_target_it_stays():
    controller = KLController(0.05)
    controller.update(1e9, episodes=1000)
    assert controller.coef == 0.05


@pytest.mark.parametrize("target", [0.0, -1.0])
def test_a_target_that_cannot_steer_is_refused(target):
    with pytest.raises(UserError, match=rf"^algorithm.kl_target: got {target}, expected more than 0"):
        KLController(0.05, target=target)
