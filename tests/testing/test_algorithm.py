"""The checks of algorithms tell right from wrong: ours and strangers' pass, each mistake fails its own."""

from dataclasses import fields

import pytest

from rlhf_core import plugins
from rlhf_core.testing.checks.algorithm import CHECKS
from rlhf_core.testing.runner import attempt

from . import wrong_algorithm_runs  # noqa: F401  # adds its own to the mistakes
from .mistakes import asked
from .right_algorithm import RIGHT
from .wrong_algorithm import EVERYWHERE, MISTAKES

SLOW = (
    "learns_the_better_arm", "repeats_to_the_bit", "resumes_to_the_bit", "evaluation_changes_nothing",
    "saves_a_plain_checkpoint", "saves_what_was_trained",
)  # fmt: skip
"""Asked of a mistake that is about one of them; all together they take as long as all others."""

SMALL = {"batch_size": 8, "responses": 4, "eval_prompts": 8, "eval_examples": 8, "prompts": 16}
"""What is lowered to this where an algorithm has it."""


def failed(plugin, checks=CHECKS):
    """What of the checks a plugin fails, with all they say."""
    outcomes = [attempt(check, plugin, "algorithm") for check in checks]
    return {outcome.check.name: str(outcome) for outcome in outcomes if outcome.status == "failed"}


@pytest.mark.parametrize("plugin", RIGHT, ids=lambda plugin: type(plugin).__name__)
def test_right_ones_pass(plugin):
    assert failed(plugin) == {}


@pytest.mark.parametrize("name", plugins.available("algorithm"))
def test_ours_pass(name):
    cls = plugins.load("algorithm", name)
    lower = {field.name: min(SMALL[field.name], field.default) for field in fields(cls) if field.name in SMALL}
    assert failed(cls(**lower)) == {}


PPO = {
    "kl_in_loss": {"kl_in": "loss", "kl_estimator": "k3", "entropy_coef": 0.02, "missing_eos_penalty": 1.0},
    "text": {"ptx_coef": 0.5, "ptx_batch": 4},
    "short": {"steps": 1},
}


@pytest.mark.parametrize("option", PPO)
def test_options_of_ours_pass(option):
    """Terms beside the reward are no mistake."""
    assert failed(plugins.load("algorithm", "ppo")(batch_size=8, **PPO[option])) == {}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_fails_its_own_checks_alone(mistake):
    expected = MISTAKES[mistake]
    slow = bool(expected.keys() & set(SLOW))
    checks = [check for check in CHECKS if slow or check.name not in SLOW]
    found = failed(mistake(), asked(checks, MISTAKES, mistake))
    assert found.keys() == expected.keys(), "\n".join(found.values())
    for name, words in expected.items():
        assert all(word in found[name] for word in words), found[name]


@pytest.mark.parametrize("mistake", EVERYWHERE, ids=lambda mistake: mistake.__name__)
def test_what_cannot_run_is_told_by_the_check_of_it(mistake):
    found = failed(mistake(), [check for check in CHECKS if check.name in EVERYWHERE[mistake]])
    for name, words in EVERYWHERE[mistake].items():
        assert all(word in found[name] for word in words), found[name]


def test_each_check_has_a_mistake():
    told = {name for found in (*MISTAKES.values(), *EVERYWHERE.values()) for name in found}
    assert told == {check.name for check in CHECKS}


def test_checks_say_everything_in_a_line():
    for check in CHECKS:
        for text in (check.expected, check.why, check.cure):
            assert text and "\n" not in text, check.name
