"""Checks of whitening.

B rows, T slots each.
"""

import math
from typing import Any

import torch

from ..check import Check, outputs
from ..oracles.gae import whiten as oracle

STD = "divided by n; some divide by n − 1, which is smaller by √(1 − 1/n)"


def _check(name: str, asserts: str, why: str, inputs: dict[str, Any], **more: Any) -> Check:
    return Check("whiten", name, asserts, "CORRECTNESS 8", why, inputs, oracle(**inputs), outputs("whitened"), **more)


ROWS: dict[str, Any] = {
    "values": [[1.0, -2.0, 0.5, 50.0], [3.0, 70.0, -90.0, 0.25]],
    "mask": [[True, True, True, False], [True, False, False, True]],
}

CHECKS = (
    _check(
        "population", "mean and population variance (÷ n) of the valid slots of all rows together",
        "padding in the statistics makes them depend on the longest response; a row's own hide which row is better",
        ROWS, choice=STD,
    ),
    _check(
        "shift_mean", "shift_mean=False divides the distance from the mean and keeps the mean",
        "rewards scaled about 0 instead change size with their mean", ROWS | {"shift_mean": False}, choice=STD,
    ),
    _check(
        "one_valid", "one valid slot gives 0: it neither raises nor divides by n − 1 = 0",
        "a minibatch with one token would be NaN",
        {"values": [[3.0, 8.0]], "mask": [[True, False]]},
    ),
    _check(
        "all_alike", "equal values give 0", "a batch of equal rewards would be NaN or Inf",
        {"values": [[0.125, 0.125, 0.125]], "mask": [[True, True, True]]},
    ),
    _check(
        "large_offset", "float32 values far from 0 keep their variance: two passes or Welford, no E[x²] − E[x]²",
        "the difference of two squares of 4096 keeps no digit of a variance of 0.1: NaN, or noise",
        {"values": [[4096.0, 4096.25, 4096.5, 4097.0]], "mask": [[True, True, True, True]]},
        dtype=torch.float32, tolerance=1e-3, choice=STD,
    ),
    _check(
        "masked_nan", "NaN and Inf in masked slots reach no valid one",
        "0·NaN is NaN: masks select, they do not multiply",
        {"values": [[1.0, math.nan, 3.0], [math.inf, 5.0, 4.0]], "mask": [[True, False, True], [False, True, True]]},
        choice=STD,
    ),
)  # fmt: skip
