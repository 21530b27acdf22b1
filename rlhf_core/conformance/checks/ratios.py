"""Checks of the policy loss's other objectives: one ratio a sequence (GSPO), and CISPO.

B rows, T slots each.
"""

from typing import Any

from ..check import Check, Probe, gradient_alone, loss_and_gradient
from ..oracles.policy import policy_loss as oracle
from .policy_loss import kept, tokens

BY_SEQUENCE: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "level": "sequence", "aggregate": "sequence"}
WITH_CISPO: dict[str, Any] = {"clip_high": 0.2, "kind": "cispo"}
GRADIENT = gradient_alone("logprobs")
GSPO, CISPO = "CORRECTNESS 15; arXiv:2507.18071", "arXiv:2506.13585, eq. 4"


def _sequence(name: str, asserts: str, why: str, inputs: dict[str, Any]) -> Check:
    inputs = BY_SEQUENCE | inputs
    probe = loss_and_gradient("logprobs")
    return Check("sequence_ratio", name, asserts, GSPO, why, inputs, oracle(**inputs), probe, "policy_loss")


def _cispo(name: str, asserts: str, why: str, inputs: dict[str, Any], probe: Probe, choice: str = "") -> Check:
    inputs = WITH_CISPO | inputs
    expected = oracle(**inputs)
    if probe is GRADIENT:
        del expected["loss"]
    return Check("cispo", name, asserts, CISPO, why, inputs, expected, probe, "policy_loss", choice=choice)


TWO = tokens(
    [[1.4, 0.9, 1.0, 1.0], [0.8, 1.0, 1.3, 0.9]], [[2.0, 2.0, 9.0, 9.0], [-1.0, -1.0, -1.0, -1.0]], kept((2, 4), 4)
)
CLIPPED = tokens(
    [[1.6, 1.5, 1.0], [0.5, 0.6, 0.9], [1.6, 1.5, 1.0]], [[1.0] * 3, [-1.0] * 3, [-1.0] * 3], kept((3, 3, 3), 3)
)
RATIOS = tokens([[1.5, 1.1, 0.9, 1.5]], [[2.0, 1.0, -1.0, -2.0]])
LOW = tokens([[0.5, 0.5, 0.9]], [[2.0, -1.0, 1.0]])

CHECKS = (
    _sequence("mean", "ρ = exp(mean log-ratio of a row's valid tokens); the gradient is shared by all of them equally",
              "a sum instead of a mean is clipped at once for every longer response", TWO),
    _sequence("clip", "the sequence's ratio is what is clipped: all of its tokens keep the gradient, or none does",
              "clipped by the token it is another algorithm", CLIPPED),
    _sequence("gaps", "masked tokens count neither in the mean nor in its length",
              "padding or tool output would pull the ratio to 1",
              tokens([[1.3, 7.0, 1.1, 0.1]], [[1.0, 1.0, 1.0, 1.0]], [[True, False, True, False]])),
    _cispo("gradient", "every token keeps a gradient: −clip(ρ)·A/n, also where ρ is above the bound",
           "clipped tokens, often the rare and decisive ones, would learn nothing",
           RATIOS | {"clip_low": 1.0}, GRADIENT),
    _cispo("gradient_low", "so it is below a lower bound: −(1 − clip_low)·A/n", "as above", LOW | {"clip_low": 0.2},
           GRADIENT, choice="the paper tunes the upper bound alone; not all have a lower one"),
    _cispo("surrogate", "the loss is −mean(sg(clip(ρ))·A·log π)", "it is what the paper prints",
           RATIOS | {"clip_low": 1.0}, loss_and_gradient("logprobs")),
)  # fmt: skip
