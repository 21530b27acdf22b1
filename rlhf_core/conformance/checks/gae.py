"""Checks of generalised advantage estimation.

B rows, T slots each.
"""

import math
from typing import Any

from ..check import Check, outputs
from ..oracles.gae import gae as oracle

PAPER = "arXiv:1506.02438"
NAN = math.nan


def _check(name: str, asserts: str, why: str, *, source: str = "CORRECTNESS 7", **inputs: Any) -> Check:
    probe = outputs("advantages", "returns")
    return Check("gae", name, asserts, source, why, inputs, oracle(**inputs), probe)


TWO: dict[str, Any] = {
    "rewards": [[0.1, -0.2, 0.3, 1.0], [0.5, -1.0, 0.0, 0.0]],
    "values": [[0.5, 0.4, -0.3, 0.2], [0.9, -0.6, 0.0, 0.0]],
    "mask": [[True, True, True, True], [True, True, False, False]],
}
"""A row of four tokens and one of two."""

CHECKS = (
    _check(
        "two_rows",
        "δ_t = r_t + γV_{t+1} − V_t, A_t = δ_t + γλA_{t+1}, returns A + V; V and A are 0 after a row's last token",
        "a row that borrows the padding's value, or the next row's, learns from what it never did",
        source=PAPER, gamma=0.9, lam=0.8, **TWO,
    ),
    _check(
        "gaps",
        "tokens the policy did not choose are skipped: the next valid V and the running A are carried across them",
        "tool output in the middle of a response would cut its credit off, or pay for a critic's guess about it",
        source="CORRECTNESS 6", gamma=1.0, lam=0.95,
        rewards=[[0.0, 0.0, 0.0, 0.0, 1.0]], values=[[0.5, 0.4, 9.0, 9.0, 0.3]],
        mask=[[True, True, False, False, True]],
    ),
    _check(
        "gaps_discounted",
        "a gap costs no discount: γ and γλ are paid a valid token, at the start, in the middle and at the end of a row",
        "the longer a tool's answer, the less the tokens before it would count",
        source="CORRECTNESS 6", gamma=0.9, lam=0.7,
        rewards=[[5.0, 0.2, 7.0, 0.0, 8.0, 1.0, 6.0]], values=[[9.0, 0.5, 9.0, 0.4, 9.0, 0.3, 9.0]],
        mask=[[False, True, False, True, False, True, False]],
    ),
    _check("lam_0", "with λ = 0 the advantage is the one-step error δ_t", "λ is not what it says",
           source=PAPER, gamma=0.9, lam=0.0, **TWO),
    _check("lam_1", "with λ = 1 the returns are the discounted sums of rewards", "λ is not what it says",
           source=PAPER, gamma=0.9, lam=1.0, **TWO),
    _check(
        "one_token", "a response of one token has A = r − V and return r", "it is the shortest answer there is",
        gamma=1.0, lam=0.95, rewards=[[0.7]], values=[[0.2]], mask=[[True]],
    ),
    _check(
        "empty_row", "a row without a valid token raises nothing and touches no other row",
        "one empty response would spoil or stop the whole batch", gamma=1.0, lam=0.95,
        rewards=[[3.0, 4.0], [0.0, 1.0]], values=[[5.0, 6.0], [0.5, 0.3]], mask=[[False, False], [True, True]],
    ),
    _check(
        "masked_nan", "NaN and Inf in masked slots, of gaps and of padding, reach no valid token",
        "what a critic says of padding may be anything", gamma=1.0, lam=0.95,
        rewards=[[0.1, NAN, 1.0, NAN, math.inf]], values=[[0.5, math.inf, 0.3, NAN, NAN]],
        mask=[[True, False, True, False, False]],
    ),
    _check(
        "masked_nan_padding", "NaN in padding reaches no valid token", "what a critic says of padding may be anything",
        gamma=1.0, lam=0.95, rewards=[[0.1, 1.0, NAN]], values=[[0.5, 0.3, NAN]], mask=[[True, True, False]],
    ),
    _check(
        "score", "the score of a response lands on its last valid token, whatever comes after",
        "on another token, or on padding, it is paid to the wrong choice or to none",
        source="CORRECTNESS 5", gamma=0.9, lam=0.8, scores=[2.0, -1.0, 0.5, 4.0],
        rewards=[[0.1, 0.1, 0.1], [0.1, 0.1, 0.0], [0.1, 0.0, 0.1], [0.0, 0.0, 0.0]],
        values=[[0.5, 0.4, 0.3], [0.2, 0.1, 9.0], [0.6, 9.0, 0.7], [9.0, 9.0, 9.0]],
        mask=[[True, True, True], [True, True, False], [True, False, True], [False, False, False]],
    ),
    _check(
        "bootstrap", "the last token of a truncated row sees γ times the value that is given; the others' sees 0",
        "a response cut off at the length limit would count as finished there", gamma=0.9, lam=0.8,
        bootstrap=[0.0, 1.5], rewards=TWO["rewards"], values=TWO["values"], mask=TWO["mask"],
    ),
)  # fmt: skip
