"""Checks of the DPO family.

B pairs, T slots a response.
"""

from typing import Any

from ..check import Check, loss_and_gradient
from ..oracles.preference import preference_loss as oracle

DPO, SUMMED = "CORRECTNESS 25; arXiv:2305.18290", "CORRECTNESS 25"
BOTH = loss_and_gradient("chosen", "rejected")

EQUAL: dict[str, Any] = {
    "chosen": [[-1.0, -0.5], [-2.0, -0.25]],
    "rejected": [[-0.75, -1.5], [-0.5, -1.0]],
    "chosen_mask": [[True, True], [True, True]],
    "rejected_mask": [[True, True], [True, True]],
    "beta": 0.5,
}
"""All responses have two tokens."""

UNEQUAL: dict[str, Any] = {
    "chosen": [[-1.0, -0.5, -1.5], [-2.0, -9.0, -9.0]],
    "rejected": [[-0.75, -9.0, -9.0], [-0.5, -1.0, -9.0]],
    "chosen_mask": [[True, True, True], [True, False, False]],
    "rejected_mask": [[True, False, False], [True, True, False]],
    "beta": 0.5,
}
"""Three tokens against one, one against two."""

PROMPT: dict[str, Any] = {
    "chosen": [[-7.0, -1.0, -0.5]],
    "rejected": [[-7.5, -0.75, -9.0]],
    "ref_chosen": [[-3.0, -1.25, -0.5]],
    "ref_rejected": [[-1.0, -0.5, -9.0]],
    "chosen_mask": [[False, True, True]],
    "rejected_mask": [[False, True, False]],
    "beta": 0.5,
}
"""With a slot of the prompt in front."""


def referenced(pairs: dict[str, Any]) -> dict[str, Any]:
    """The same with a reference that differs from token to token."""
    shift = {"ref_chosen": (pairs["chosen"], 0.25), "ref_rejected": (pairs["rejected"], -0.125)}
    return pairs | {
        name: [[x + by * (1 + t + 2 * b) for t, x in enumerate(row)] for b, row in enumerate(rows)]
        for name, (rows, by) in shift.items()
    }


def _check(name: str, asserts: str, why: str, source: str, inputs: dict[str, Any], choice: str = "") -> Check:
    return Check("preference_loss", name, asserts, source, why, inputs, oracle(**inputs), BOTH, choice=choice)


HUGE: dict[str, Any] = {
    "chosen": [[-2e4], [-1.0]], "rejected": [[-1.0], [-2e4]], "ref_chosen": [[-1.0], [-1.0]],
    "ref_rejected": [[-1.0], [-1.0]], "chosen_mask": [[True], [True]], "rejected_mask": [[True], [True]], "beta": 1.0,
}  # fmt: skip

CHECKS = (
    _check("dpo", "−log σ(β·(chosen log-ratio − rejected log-ratio)), mean over pairs",
           "the wrong sign trains the opposite", DPO, referenced(EQUAL)),
    _check("summed", "dpo sums log-probs over a response's tokens, however many",
           "averaged, β means another thing for every length", SUMMED, referenced(UNEQUAL)),
    _check("response_alone", "slots outside the response count neither in the policy's nor in the reference's sum",
           "the prompt's log-probs, equal in both, would not cancel after a step", SUMMED, PROMPT),
    _check("large_ratios", "log-ratios of ±2e4 give 0 or 2e4, not Inf", "log(1 + exp) would end the run", DPO, HUGE),
    _check("label_smoothing", "−(1−ε)·log σ(h) − ε·log σ(−h)", "a share of the labels is wrong",
           "CORRECTNESS 25; conservative DPO, ericmitchell.ai/cdpo.pdf", referenced(EQUAL) | {"label_smoothing": 0.1}),
    _check("reference_free", "without a reference its log-probs count as 0", "as if it were uniform", SUMMED, EQUAL),
    _check("hinge", "max(0, 1 − h)", "SLiC", "arXiv:2305.10425", referenced(UNEQUAL) | {"kind": "hinge"}),
    _check("ipo", "(h/β − 1/(2β))² with log-ratios averaged by length",
           "summed, long pairs have no optimum within reach", "CORRECTNESS 25; arXiv:2310.12036",
           referenced(UNEQUAL) | {"kind": "ipo"}),
    _check("orpo", "−log p − β·log σ(log odds of chosen − of rejected), p averaged by length",
           "odds of a sum are the odds of 0", "arXiv:2403.07691", EQUAL | {"kind": "orpo"}),
    _check("orpo_lengths", "the likelihood term is averaged over a response, then over pairs",
           "long answers would count more",
           "arXiv:2403.07691", UNEQUAL | {"kind": "orpo"},
           choice="the paper leaves open whether the likelihood term is a mean over responses or over all tokens"),
    _check("simpo", "−log σ(β·(mean log-prob of chosen − of rejected) − γ)", "summed, it prefers short answers",
           "arXiv:2405.14734", UNEQUAL | {"kind": "simpo", "margin": 0.4, "beta": 2.0}),
)  # fmt: skip
