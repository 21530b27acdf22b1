"""Checks of log-probs of given tokens.

B rows, T tokens each, V vocabulary.
"""

import math
from typing import Any

import torch

from ..check import Arguments, Check, Function, Probe, gradients, leaves, outputs
from ..oracles.groups import logprobs as oracle

PRECISE = "CORRECTNESS 26"


def with_gradient(function: Function, arguments: Arguments) -> dict[str, Any]:
    """The log-probs, and the gradient of their sum."""
    arguments = leaves(arguments, ("logits",))
    found = function(**arguments)
    return {"logprobs": found} | gradients(found, arguments, ("logits",))


def above_zero(function: Function, arguments: Arguments) -> dict[str, Any]:
    """The largest, where that is above 0."""
    return {"above 0": function(**arguments).clamp(min=0).max()}


def _check(
    name: str, asserts: str, why: str, inputs: dict[str, Any], probe: Probe = with_gradient, source: str = PRECISE,
    expected: dict[str, Any] | None = None, **more: Any,
) -> Check:  # fmt: skip
    found = expected or oracle(**inputs)
    return Check("logprobs", name, asserts, source, why, inputs, found, probe, **more)


def _asked(inputs: dict[str, Any]) -> dict[str, Any]:
    """The values alone."""
    return {"logprobs": oracle(**inputs)["logprobs"]}


LOGITS = [[[0.5, -1.0, 2.0, 0.25], [3.0, 1.0, -2.0, 0.0]], [[-0.5, 0.75, 1.5, -3.0], [1.0, 1.0, 1.0, 1.0]]]
TARGETS = [[2, 1], [3, 0]]
LARGE: dict[str, Any] = {"logits": [[[1024.0, 1023.5, 1022.0, 1017.0]]], "targets": [[1]]}
SURE: dict[str, Any] = {"logits": [[[24.0, 0.0, -3.0], [17.0, -1.0, 2.0], [-8.0, 9.5, -7.0]]], "targets": [[0, 0, 1]]}
COARSE: dict[str, Any] = {
    "logits": [[[3.015625, 1.0, -2.0, 0.5], [12.0625, 11.0, 4.5, 9.75]]], "targets": [[1, 3]],
}  # fmt: skip

CHECKS = (
    _check("values", "z_target − log Σ e^z; the gradient is onehot − softmax", "all else is made of these",
           {"logits": LOGITS, "targets": TARGETS}, source="log-softmax"),
    _check("temperature", "temperature divides the logits, before the softmax", "off it, the first ratio is not 1",
           {"logits": LOGITS, "targets": TARGETS, "temperature": 0.7}, source="CORRECTNESS 10"),
    _check("ignored", "a target of −100 gives 0 and no gradient", "padding would be learnt",
           {"logits": LOGITS, "targets": [[2, -100], [-100, 0]]}, source="CORRECTNESS 4"),
    _check("impossible_token", "a logit of −inf is a token of probability 0, no NaN", "banned tokens would end the run",
           {"logits": [[[0.5, -math.inf, 2.0]]], "targets": [[2]]}, source="log-softmax"),
    _check("large_logits", "float32 logits far from 0 lose nothing: the largest is subtracted first",
           "z − logsumexp(z) rounds both to a multiple of 1/8192 at 1024", LARGE, outputs("logprobs"),
           expected=_asked(LARGE), dtype=torch.float32, tolerance=1e-5),
    _check("never_positive", "log-probs in float32 are never above 0", "a probability above 1 gives a KL below 0",
           SURE, above_zero, expected={"above 0": 0.0}, dtype=torch.float32, tolerance=0.0),
    _check("bfloat16", "bfloat16 logits give the log-probs of these very logits in float32",
           "log-softmax in bfloat16 is off by up to 0.4 % of each, the ratio by as much", COARSE, outputs("logprobs"),
           expected=_asked(COARSE), dtype=torch.bfloat16, tolerance=1e-5),
)  # fmt: skip
