"""Checks of the KL estimators, k1 = d, k2 = d²/2, k3 = e^−d − 1 + d with d = log π − log π_ref.

V tokens, which are a whole vocabulary, side by side in one row.
"""

import math
from typing import Any

import torch

from ..check import Arguments, Check, Function, leaves, outputs
from ..oracles.policy import exact_kl
from ..oracles.policy import kl as oracle

SCHULMAN = "CORRECTNESS 9; joschu.net/blog/kl-approx.html"
POLICY = [0.5, 0.3, 0.15, 0.05]
REFERENCE = [0.25, 0.25, 0.4, 0.1]
LOGPROBS, REF_LOGPROBS = ([[math.log(p) for p in probabilities]] for probabilities in (POLICY, REFERENCE))
VOCABULARY: dict[str, Any] = {"logprobs": LOGPROBS, "ref_logprobs": REF_LOGPROBS}


def expectation(function: Function, arguments: Arguments) -> dict[str, Any]:
    """Of the estimate under π."""
    estimates = function(**arguments)
    return {"expectation": (arguments["logprobs"].exp() * estimates).sum()}


def expected_gradient(function: Function, arguments: Arguments) -> dict[str, Any]:
    """Of an estimate used as a loss, tokens sampled from π: E_π[∇ estimate], by the logits of π."""
    arguments = leaves(arguments, ("logprobs",))  # which sum to 1, so they are logits of π too
    logits = arguments["logprobs"]
    logprobs = logits.log_softmax(-1)
    estimates = function(**arguments | {"logprobs": logprobs})
    (gradient,) = torch.autograd.grad((logprobs.detach().exp() * estimates).sum(), logits)
    return {"gradient of logits": gradient}


def _value(kind: str) -> Check:
    inputs = VOCABULARY | {"kind": kind}
    formula = {"k1": "d", "k2": "d²/2", "k3": "e^−d − 1 + d"}[kind]
    why = "with d the other way round it estimates the KL of the other direction"
    return Check("kl", kind, f"{kind} of a token is {formula}", SCHULMAN, why, inputs, oracle(**inputs),
                 outputs("estimates"))  # fmt: skip


def _unbiased(kind: str) -> Check:
    inputs = VOCABULARY | {"kind": kind}
    expected = {"expectation": exact_kl(LOGPROBS[0], REF_LOGPROBS[0])}
    why = "the KL that is reported, and paid for, would be another one"
    return Check("kl", f"{kind}_unbiased", f"E_π[{kind}] = KL(π‖π_ref), summed over the whole vocabulary", SCHULMAN,
                 why, inputs, expected, expectation)  # fmt: skip


def _gradient(kind: str, asserts: str, why: str, expected: list[float]) -> Check:
    inputs = VOCABULARY | {"kind": kind}
    return Check("kl", f"{kind}_gradient", asserts, SCHULMAN, why, inputs, {"gradient of logits": [expected]},
                 expected_gradient)  # fmt: skip


REVERSE = [
    p * (log_p - log_q - exact_kl(LOGPROBS[0], REF_LOGPROBS[0]))
    for p, log_p, log_q in zip(POLICY, LOGPROBS[0], REF_LOGPROBS[0], strict=True)
]
"""∇KL(π‖π_ref) by the logits of π."""

FORWARD = [p - q for p, q in zip(POLICY, REFERENCE, strict=True)]
"""∇KL(π_ref‖π)."""

CHECKS = (
    *map(_value, ("k1", "k2", "k3")),
    *map(_unbiased, ("k1", "k3")),
    _gradient("k1", "the mean of k1 has no gradient: E_π[∇log π] = 0",
              "who takes it for a loss should know that it does nothing but add noise", [0.0] * len(POLICY)),
    _gradient("k2", "E_π[∇k2] = ∇KL(π‖π_ref)", "it is the estimator whose gradient is that of the KL", REVERSE),
    _gradient("k3", "E_π[∇k3] = ∇KL(π_ref‖π), the other direction",
              "k3 in a loss pulls towards covering the reference, not towards its mode", FORWARD),
)  # fmt: skip
