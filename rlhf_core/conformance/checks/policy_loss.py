"""Checks of the clipped policy loss with a ratio a token: clip table, dual clip, denominators, masks.

B rows, T slots each; log-probs are such that ratios are round numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..check import Arguments, Check, Function, Probe, leaves, loss_and_gradient
from ..oracles.policy import policy_loss as oracle

NAN = math.nan
PPO, DUAL, HIGHER = (
    "CORRECTNESS 13; arXiv:1707.06347",
    "CORRECTNESS 14; arXiv:1912.09729",
    "CORRECTNESS 14; arXiv:2503.14476",
)
DENOMINATORS = "CORRECTNESS 12"
BOTH = loss_and_gradient("logprobs")


def _check(
    name: str, asserts: str, why: str, source: str, inputs: dict[str, Any], probe: Probe = BOTH,
    expected: dict[str, Any] | None = None, **more: Any,
) -> Check:  # fmt: skip
    inputs = {"clip_low": 0.2, "clip_high": 0.2} | inputs
    return Check("policy_loss", name, asserts, source, why, inputs, expected or oracle(**inputs), probe, **more)


def tokens(ratios: list[list[float]], advantages: list[list[float]], mask: list[list[bool]] | None = None) -> Arguments:
    """Inputs whose ratios are these; masked slots may hold NaN."""
    old = [[-1.0 - 0.125 * t for t in range(len(row))] for row in ratios]
    new = [[o + math.log(r) for o, r in zip(*rows, strict=True)] for rows in zip(old, ratios, strict=True)]
    everywhere = [[True] * len(row) for row in ratios]
    return {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": mask or everywhere}


def microbatches(function: Function, arguments: Arguments) -> dict[str, Any]:
    """The sum over two halves of the rows of loss and gradient."""
    arguments = leaves(arguments, ("logprobs",))
    rows = len(arguments["mask"])
    losses = []
    for part in (slice(0, rows // 2), slice(rows // 2, rows)):
        cut = {name: value[part] if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
        losses.append(function(**cut))
    (gradient,) = torch.autograd.grad(losses[0] + losses[1], arguments["logprobs"])
    return {"loss": losses[0] + losses[1], "gradient of logprobs": gradient}


def finite(function: Function, arguments: Arguments) -> dict[str, Any]:
    """1 where loss and gradient are finite."""
    came = BOTH(function, arguments)
    return {f"{name} is finite": value.isfinite().all().double() for name, value in came.items()}


def kept(lengths: Sequence[int], slots: int) -> list[list[bool]]:
    """A mask of rows padded on the right."""
    return [[t < length for t in range(slots)] for length in lengths]


UNEQUAL = tokens(
    [[1.1, 1.0, 0.9, 1.05], [0.95, 1.0, 1.0, 1.0]], [[1.0, -2.0, 0.5, 3.0], [-1.5, 9.0, 9.0, 9.0]], kept((4, 1), 4)
)
"""A row of four tokens and one of one."""

FOUR = tokens(
    [[1.1, 1.0, 0.9], [0.95, 1.3, 1.0], [0.7, 1.0, 1.0], [1.05, 0.9, 0.75]],
    [[1.0, -2.0, 0.5], [-1.5, 2.0, 9.0], [0.3, 9.0, 9.0], [-1.0, 1.0, -0.4]],
    kept((3, 2, 1, 3), 3),
)
WITH_EMPTY = tokens(
    [[1.1, 1.0, 0.9], [1.3, 0.7, 1.0], [0.95, 1.0, 1.0], [1.0, 1.0, 1.0]],
    [[1.0, -2.0, 0.5], [9.0, 9.0, 9.0], [-1.5, 9.0, 9.0], [9.0, 9.0, 9.0]],
    kept((3, 0, 1, 0), 3),
)

CHECKS = (
    _check("ratio_one", "where new and old log-probs are equal the loss is −mean(A), its gradient −A/n",
           "the first step of every epoch starts here", "CORRECTNESS 1",
           tokens([[1.0, 1.0, 1.0]], [[1.0, -2.0, 0.5]])),
    _check("clip_table", "min(ρA, clip(ρ)A): clipped, without gradient, where A > 0 and ρ > 1.2 or A < 0 and ρ < 0.8",
           "clipped on the other side it stops the corrections and lets the excesses through", PPO,
           tokens([[1.5, 1.5, 0.5, 0.5, 1.1, 0.9]], [[2.0, -2.0, 2.0, -2.0, 1.0, -1.0]])),
    _check("clip_higher", "the upper bound is 1 + clip_high, the lower one 1 − clip_low, whatever the other",
           "with one number for both, clip-higher is off, or lowers the floor too", HIGHER,
           tokens([[1.25, 1.35, 0.75, 0.7]], [[1.0, 1.0, -1.0, 1.0]]) | {"clip_high": 0.28}),
    _check("dual_clip", "with A < 0 the objective is at least c·A: a ratio of 5 counts as 3, without gradient",
           "a token that became likely and bad would dominate the batch", DUAL,
           tokens([[5.0, 2.0, 0.5]], [[-1.0, -1.0, -1.0]]) | {"dual_clip": 3.0}),
    _check("dual_clip_positive", "dual clip leaves A > 0 alone", "it would reward what should be clipped", DUAL,
           tokens([[5.0, 1.1, 0.5]], [[1.0, 1.0, 1.0]]) | {"dual_clip": 3.0}),
    _check("huge_ratio", "a log-ratio of 100 in float32 leaves loss and gradient finite",
           "one outlier would make every weight NaN", "CORRECTNESS 13",
           tokens([[math.e**100, 1.0]], [[-1.0, 1.0]]), finite,
           {"loss is finite": 1.0, "gradient of logprobs is finite": 1.0}, dtype=torch.float32),
    _check("log_ratio_clamp", "log-ratios are clamped to ±20, outside of which there is no gradient",
           "e^20 squares in float32, e^50 does not", "CORRECTNESS 13",
           tokens([[math.e**25, math.e**-25, 1.0]], [[-1.0, 1.0, 1.0]]),
           choice="the bound of 20 is verl's and ours; some clamp elsewhere, or not at all"),
    _check("token_mean", "aggregate=token: the mean over valid tokens of all rows",
           "a mean of rows' means would favour short responses", DENOMINATORS, UNEQUAL),
    _check("sequence_mean", "aggregate=sequence: the mean over rows of the mean over their valid tokens",
           "divided by the padded length it would favour long responses", DENOMINATORS,
           UNEQUAL | {"aggregate": "sequence"}),
    _check("constant", "aggregate=constant: the sum over valid tokens, divided by the constant",
           "any length in it favours short or long responses",
           "CORRECTNESS 12; arXiv:2503.20783", UNEQUAL | {"aggregate": "constant", "denominator": 8.0}),
    _check("token_microbatches", "two microbatches with the global token count add up to the batch",
           "the mean of microbatches' means weights tokens by what they happened to lie beside", DENOMINATORS,
           FOUR | {"denominator": 9.0}, microbatches),
    _check("sequence_microbatches", "two microbatches with the global row count add up to the batch",
           "gradient accumulation would change what is optimised", DENOMINATORS,
           FOUR | {"aggregate": "sequence", "denominator": 4.0}, microbatches),
    _check("empty_rows", "rows without a valid token do not count in the mean over rows",
           "filtered or truncated responses would shrink the others' gradient", DENOMINATORS,
           WITH_EMPTY | {"aggregate": "sequence"}),
    _check("all_masked", "without any valid token loss and gradient are 0", "0/0 would end the run", DENOMINATORS,
           tokens([[1.1, 0.9]], [[1.0, 2.0]], [[False, False]])),
    _check("masked_nan", "NaN in masked slots reaches neither the loss nor the gradient",
           "0·NaN is NaN: masks select, they do not multiply", "CORRECTNESS 7",
           tokens([[1.1, NAN], [NAN, 0.9]], [[1.0, NAN], [NAN, 2.0]], [[True, False], [False, True]])),
)  # fmt: skip
