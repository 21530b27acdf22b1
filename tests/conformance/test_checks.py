"""The checks tell right from wrong: a plain implementation agrees with all of them, each mistake fails its own."""

import math

import pytest

from rlhf_core.conformance.check import Prompts
from rlhf_core.conformance.checks import CHECKS
from rlhf_core.conformance.oracles import gae, policy, preference
from rlhf_core.conformance.run import ask
from rlhf_core.conformance.signatures import SIGNATURES, Implementation, options

from .right import Right
from .wrong import MISTAKES


def implementation(offered: object) -> Implementation:
    return Implementation("it", {name: getattr(offered, name) for name in SIGNATURES})


def test_a_plain_implementation_agrees():
    results = [ask(implementation(Right()), check) for check in CHECKS]
    assert {r.check.id: (r.difference, r.reason) for r in results if r.status != "agrees"} == {}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_is_found_by_its_checks_alone(mistake):
    wrong = {check.id for check in CHECKS if ask(implementation(mistake()), check).wrong}
    assert wrong == MISTAKES[mistake]


def test_checks_are_named_once_and_say_everything():
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    assert {check.asked for check in CHECKS} == set(SIGNATURES)
    for check in CHECKS:
        assert all((check.asserts, check.why, check.source, check.expected)), check.id
        assert "\n" not in check.asserts + check.why + check.source + check.choice, check.id


def test_each_option_has_a_check():
    asked = {(check.asked, option) for check in CHECKS for option in options(check.asked) & set(check.inputs)}
    assert asked == {(function, option) for function in SIGNATURES for option in options(function)}


def test_gaps_are_those_of_the_golden_vector():
    """CORRECTNESS 6, worked out by hand."""
    (check,) = [check for check in CHECKS if check.id == "gae.gaps"]
    first, second, *_, last = check.expected["advantages"][0]
    assert (first, second, last) == pytest.approx((0.43675, 0.565, 0.7), abs=1e-12)


LOSSES = {
    "policy_loss": policy.policy_loss,
    "value_loss": policy.value_loss,
    "ranking_loss": preference.ranking_loss,
    "preference_loss": preference.preference_loss,
}
SMOOTH = [
    check
    for check in CHECKS
    if check.asked in LOSSES and "loss" in check.expected and check.inputs.get("kind") != "cispo"
    and check.id not in ("policy_loss.log_ratio_clamp", "preference_loss.large_ratios", "ranking_loss.large_scores")
]  # fmt: skip


@pytest.mark.parametrize("check", SMOOTH, ids=lambda check: check.id)
def test_gradients_of_oracles_are_slopes_of_their_losses(check):
    oracle, step = LOSSES[check.asked], 1e-6
    for named in (name for name in check.expected if name.startswith("gradient of ")):
        rows = check.inputs[named.removeprefix("gradient of ")]
        for b, row in enumerate(rows):
            for t in range(len(row)):
                losses = []
                for by in (-step, step):
                    moved = [[x + by * ((i, j) == (b, t)) for j, x in enumerate(r)] for i, r in enumerate(rows)]
                    losses.append(oracle(**check.inputs | {named.removeprefix("gradient of "): moved})["loss"])
                slope = (losses[1] - losses[0]) / (2 * step)
                assert check.expected[named][b][t] == pytest.approx(slope, abs=1e-6)


def test_whitened_numbers_have_mean_0_and_variance_1():
    whitened = gae.whiten([[1.0, math.nan], [4.0, 10.0]], [[True, False], [True, True]])["whitened"]
    kept = [x for row in whitened for x in row if x is not None]
    assert sum(kept) == pytest.approx(0)
    assert sum(x * x for x in kept) == pytest.approx(3)


def test_prompts_stay_a_list():
    assert isinstance(next(c for c in CHECKS if c.asked == "ranking_loss").inputs["scores"], Prompts)
