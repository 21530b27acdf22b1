"""The checks of rollout engines: wrong ones fail those that are about their mistake, right ones none."""

import pytest

from rlhf_core import plugins
from rlhf_core.testing import attempt
from rlhf_core.testing.checks.rollout import CHECKS

from .mistakes import asked, failed, found_alone
from .right_rollout import RIGHT
from .wrong_rollout import MISTAKES


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_is_found_by_its_checks_alone(mistake):
    found_alone(failed(mistake(), "rollout", asked(CHECKS, MISTAKES, mistake)), MISTAKES[mistake])


def test_every_check_finds_a_mistake():
    assert {check.name for check in CHECKS} == {name for told in MISTAKES.values() for name in told}


@pytest.mark.parametrize("engine", RIGHT, ids=lambda engine: f"{type(engine).__name__}-{engine.temperature}")
def test_right_engines_pass(engine):
    assert {name: str(outcome) for name, outcome in failed(engine, "rollout", CHECKS).items()} == {}


@pytest.mark.parametrize("name", ["transformers", "calculator"])
def test_ours_pass(name):
    engine = plugins.load("rollout", name)
    outcomes = [attempt(check, engine(temperature=0.7, batch_size=9), "rollout") for check in CHECKS]
    assert [str(outcome) for outcome in outcomes if outcome.status == "failed"] == []
    skipped = {outcome.check.name for outcome in outcomes if outcome.status == "skipped"}
    assert skipped <= {"says_which_tokens_were_chosen"}


def test_a_refused_nucleus_is_skipped_and_says_so():
    for check in CHECKS:
        if check.name in ("samples_stay_in_the_nucleus", "logprobs_are_of_the_full_distribution"):
            outcome = attempt(check, RIGHT[0], "rollout")
            assert outcome.status == "skipped" and "rollout.top_p: got 0.6" in outcome.reason
