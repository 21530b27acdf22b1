"""Checks of advantages within a group of responses to one prompt.

B responses in groups of G neighbours.
"""

from typing import Any

from ..check import Arguments, Check, Function, Probe, outputs
from ..oracles.groups import group_advantages as oracle

GRPO, RLOO, EDGES = "arXiv:2402.03300, §4.1.2", "arXiv:2402.14740, eq. 8", "CORRECTNESS 22"
ADVANTAGES = outputs("advantages")


def direction(function: Function, arguments: Arguments) -> dict[str, Any]:
    """Advantages of each group over the largest of it, which no factor changes."""
    found = function(**arguments).view(-1, arguments["group"])
    return {"over the largest": found / found.abs().amax(1, keepdim=True)}


def _check(
    name: str, asserts: str, why: str, source: str, inputs: dict[str, Any], probe: Probe = ADVANTAGES,
    expected: dict[str, Any] | None = None, **more: Any,
) -> Check:  # fmt: skip
    found = expected or oracle(**inputs)
    return Check("group_advantages", name, asserts, source, why, inputs, found, probe, **more)


TWO: dict[str, Any] = {"scores": [1.0, 2.0, 4.0, -0.5, -3.0, 0.25, 0.0, -1.0], "group": 4}
EPSILON = 1e-3  # ε beside the std, from 1e-8 to 1e-4 as they are found, is not what this is about


def _over_the_largest(scores: list[float], group: int) -> list[list[float]]:
    found = oracle(scores, group)["advantages"]
    groups = [found[start : start + group] for start in range(0, len(found), group)]
    return [[x / max(map(abs, row)) for x in row] for row in groups]


CHECKS = (
    _check("grpo", "(s − mean)/std of each group by itself, population std (÷ G)",
           "over the batch, prompts would be compared instead of answers", GRPO, TWO, tolerance=EPSILON,
           choice="the paper does not say which std; the sample's (÷ G−1) makes all smaller by √(1 − 1/G)"),
    _check("grpo_direction", "the advantages of a group relate as the scores less their mean, whichever the std",
           "the same without the choice", GRPO, TWO, direction, {"over the largest": _over_the_largest(**TWO)},
           tolerance=EPSILON),
    _check("zero_variance", "a group whose scores are all alike gives 0", "0/0 would end the run", EDGES,
           {"scores": [0.7, 0.7, 0.7, 1.0, 2.0, 3.0], "group": 3}, expected={"advantages": [0.0] * 3 + [None] * 3}),
    _check("one_response", "a group of one gives 0", "its std, ÷ 0, would be NaN", EDGES,
           {"scores": [3.0, -1.0], "group": 1}),
    _check("rloo", "s less the mean of the group's others", "its own score in the baseline shrinks it by 1 − 1/G", RLOO,
           TWO | {"kind": "rloo"}),
    _check("rloo_one_response", "leave-one-out of one gives 0", "the mean of nothing would be NaN", EDGES,
           {"scores": [3.0, -1.0], "group": 1, "kind": "rloo"}),
)  # fmt: skip
