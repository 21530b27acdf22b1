"""Checks of the critic's loss.

B rows, T slots each.
"""

import math
from typing import Any

from ..check import Check, loss_and_gradient
from ..oracles.policy import value_loss as oracle

PPO = "CORRECTNESS 13; arXiv:1707.06347"
NAN = math.nan


def _check(name: str, asserts: str, why: str, inputs: dict[str, Any], source: str = PPO) -> Check:
    probe = loss_and_gradient("values")
    return Check("value_loss", name, asserts, source, why, inputs, oracle(**inputs), probe)


TABLE: dict[str, Any] = {
    "values": [[1.0, 1.0, -1.0, -1.0, 0.1]],
    "old_values": [[0.0, 0.0, 0.0, 0.0, 0.0]],
    "returns": [[0.5, 3.0, -0.5, -3.0, 0.7]],
    "mask": [[True, True, True, True, True]],
}
"""Moved up or down by more than the clip, past the return or not yet there; and moved little."""

CHECKS = (
    _check("table", "½·max(free², clipped²): the larger error counts, without gradient where that is the clipped one",
           "the smaller one would reward large moves", TABLE | {"clip": 0.2}),
    _check("about_old", "it is clipped about the old values, not about the returns",
           "about anything else nothing keeps the critic near where it was",
           {"values": [[2.0, 2.3, 1.5]], "old_values": [[2.1, 1.8, 2.0]], "returns": [[2.6, 2.6, 1.0]],
            "mask": [[True, True, True]], "clip": 0.2}),
    _check("unclipped", "without a clip it is half the mean squared error",
           "without the half the coefficient means another thing",
           TABLE | {"clip": None}),
    _check("masked", "the mean is over valid tokens of all rows", "padding would shrink the critic's step",
           {"values": [[1.0, 2.0, 7.0], [0.5, 7.0, 7.0]], "old_values": [[0.9, 2.1, 7.0], [0.4, 7.0, 7.0]],
            "returns": [[0.0, 3.0, -7.0], [1.0, -7.0, -7.0]],
            "mask": [[True, True, False], [True, False, False]], "clip": 0.2}, "CORRECTNESS 12"),
    _check("masked_nan", "NaN in masked slots reaches neither the loss nor the gradient",
           "0·NaN is NaN: masks select, they do not multiply",
           {"values": [[1.0, NAN, 2.0]], "old_values": [[0.9, NAN, 2.1]], "returns": [[0.0, NAN, 3.0]],
            "mask": [[True, False, True]], "clip": 0.2}, "CORRECTNESS 7"),
)  # fmt: skip
