"""Evaluators: right ones pass, each fault fails its own check, ours pass."""

import pytest

from rlhf_core.plugins import load
from rlhf_core.testing.checks.evaluator import CHECKS

from . import wrong_evaluator as wrong
from .mistakes import failed, found_alone, outcomes

LEAVES = "leaves_the_policy_as_it_was"
LACKS = "gives_nothing_where_there_is_nothing"

MISTAKES = [
    (wrong.NeverMeasures(), {"measures_something": "samples, baseline and policy it gave {}"}),
    (wrong.NeedsSamples(), {LACKS: "a subject with nothing raised AttributeError"}),
    (wrong.NoneOfNothing(), {LACKS: "a subject with nothing gave None"}),
    (wrong.ZeroOfNothing(), {LACKS: "a subject with nothing gave {'words': 0.0}"}),
    (wrong.OneNumber(), {"gives_numbers": "evaluate() gave float"}),
    (wrong.WholeTensor(), {"gives_numbers": "words is a Tensor of shape [8]"}),
    (wrong.Percentage(), {"gives_numbers": "share is text: '50 %'"}),
    (wrong.TextNumber(), {"gives_numbers": "share is text: '0.5'"}),
    (wrong.SpacedName(), {"names_are_plain": "a number is named 'mean words'"}),
    (wrong.SlashedName(), {"names_are_plain": "a number is named '/words'"}),
    (wrong.NumberedName(), {"names_are_plain": "a number is named 4"}),
    (wrong.Infinite(), {"numbers_are_finite": "log_share is -inf", "survives_few_and_empty_answers": None}),
    (
        wrong.DividesByWords(),
        {"survives_few_and_empty_answers": "one answer, which is empty raised ZeroDivisionError"},
    ),
    (wrong.StandardDeviation(), {"survives_few_and_empty_answers": "of one answer, spread is nan"}),
    (
        wrong.RunningMean(),
        {
            "gives_the_same_numbers_again": "after another subject was evaluated",
            "measures_each_subject_anew": "words was",
        },
    ),
    (
        wrong.Counts(),
        {
            "gives_the_same_numbers_again": "calls was 1 and, when the same",
            "measures_each_subject_anew": "calls",
        },
    ),
    (wrong.DrawsOn(), {"gives_the_same_numbers_again": "noise was", "measures_each_subject_anew": "noise was"}),
    (wrong.Remembers(), {"measures_each_subject_anew": "where another subject was evaluated before"}),
    (
        wrong.Bootstrap(),
        {"ignores_global_random_numbers": "words was", "leaves_the_process_as_it_was": "the state of random"},
    ),
    (wrong.Seeds(), {"leaves_the_process_as_it_was": "evaluate() changed the state of torch"}),
    (wrong.SwitchesGradientsOff(), {"leaves_the_process_as_it_was": "left gradients switched off"}),
    (wrong.StaysInEval(), {LEAVES: "the mode (training) of the model (and"}),
    (wrong.BackToTrain(), {LEAVES: "of a policy in eval mode"}),
    (wrong.LeavesGradients(), {LEAVES: "the gradient of model."}),
    (wrong.ClearsGradients(), {LEAVES: "the gradient of model."}),
    (wrong.Freezes(), {LEAVES: "requires_grad of model."}),
    (wrong.Rounds(), {LEAVES: "the weights of model."}),
    (wrong.PadsLeft(), {LEAVES: "padding_side of the tokenizer"}),
    (wrong.Sorts(), {"leaves_the_samples_as_they_were": "subject.samples.responses was ['right', 'right right'"}),
    (wrong.CutsIds(), {"leaves_the_samples_as_they_were": "subject.samples.response_ids was"}),
    (wrong.WithDropout(), {"measures_without_dropout": "with the policy in train mode, where it has dropout"}),
]


@pytest.mark.parametrize(("plugin", "expected"), MISTAKES, ids=lambda value: type(value).__name__)
def test_each_mistake_fails_its_own_check(plugin, expected):
    found_alone(failed(plugin, "evaluator", CHECKS), expected)


def test_each_check_has_a_mistake():
    assert {check.name for check in CHECKS} == {name for _, expected in MISTAKES for name in expected}


@pytest.mark.parametrize("plugin", wrong.RIGHT, ids=lambda value: type(value).__name__)
def test_right_ones_pass(plugin):
    assert [str(one) for one in failed(plugin, "evaluator", CHECKS).values()] == []


@pytest.mark.parametrize("name", ["ranking_accuracy", "win_rate", "perplexity"])
def test_ours(name):
    found = outcomes(load("evaluator", name)(), "evaluator", CHECKS)
    assert {name: str(one) for name, one in found.items() if one.status != "passed"} == {}


def test_win_rate_against_a_checkpoint(checkpoints):
    found = failed(load("evaluator", "win_rate")(against=str(checkpoints["gpt2"])), "evaluator", CHECKS)
    assert [str(one) for one in found.values()] == []
