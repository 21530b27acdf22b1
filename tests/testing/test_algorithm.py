"""The checks of algorithms tell right from wrong: ours and strangers' pass, each mistake fails its own."""

import pytest

from rlhf_core import plugins
from rlhf_core.testing import run_checks
from rlhf_core.testing.checks.algorithm import CHECKS
from rlhf_core.testing.runner import attempt

from .right_algorithm import RIGHT
from .wrong_algorithm import EVERYWHERE, MISTAKES


def failed(plugin):
    """What of the checks of algorithms a plugin fails, with all they say."""
    outcomes = [attempt(check, plugin) for check in CHECKS]
    return {outcome.check.name: str(outcome) for outcome in outcomes if outcome.status == "failed"}


@pytest.mark.parametrize("plugin", RIGHT, ids=repr)
def test_right_ones_pass(plugin):
    assert failed(plugin) == {}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_fails_its_own_checks_alone(mistake):
    found = failed(mistake())
    assert found.keys() == MISTAKES[mistake].keys(), "\n".join(found.values())
    for name, words in MISTAKES[mistake].items():
        assert all(word in found[name] for word in words), found[name]


@pytest.mark.parametrize("mistake", EVERYWHERE, ids=lambda mistake: mistake.__name__)
def test_what_cannot_run_is_told_by_the_check_of_it(mistake):
    for name, words in EVERYWHERE[mistake].items():
        (check,) = [check for check in CHECKS if check.name == name]
        told = str(attempt(check, mistake()))
        assert told.startswith("FAILED") and all(word in told for word in words), told


def test_each_check_has_a_mistake():
    told = {name for found in (*MISTAKES.values(), *EVERYWHERE.values()) for name in found}
    assert told == {check.name for check in CHECKS}


def test_checks_say_everything_in_a_line():
    for check in CHECKS:
        for text in (check.expected, check.why, check.cure):
            assert text and "\n" not in text, check.name
