"""Benchmarks: right ones pass, each fault fails its own check, ours pass."""

import pytest

from rlhf_core.bench.ops import operations
from rlhf_core.plugins import load
from rlhf_core.testing.checks.benchmark import CHECKS
from rlhf_core.testing.checks.benchmark_trial import SHAPES

from . import wrong_benchmark as wrong
from .mistakes import failed, found_alone, outcomes

OUTPUTS, GRADIENTS = "outputs_are_those_of_the_definition", "gradients_are_those_of_the_definition"
NAMED, WHY_NOT = "gives_outputs_by_name", "says_why_not_in_a_few_words"

MISTAKES = [
    (wrong.NoComma(), {"covers_known_ops": "ops is one text, 'preference_loss'"}),
    (wrong.UnknownOp(), {"covers_known_ops": "'ppo_los' is no op. Did you mean ppo_loss?"}),
    (wrong.OwnKind(), {"says_what_kind_it_is": "kind is 'peers'. Did you mean peer?"}),
    (wrong.AsksTheGPU(), {WHY_NOT: "why_not('preference_loss', cuda, torch.float32) raised"}),
    (wrong.SaysWhether(), {WHY_NOT: "gave bool False"}),
    (wrong.BlankReason(), {WHY_NOT: "gave a blank text"}),
    (wrong.WholeTraceback(), {WHY_NOT: "letters in 2 lines: 'Traceback:"}),
    (wrong.GivesNoFunction(), {NAMED: "prepare of preference_loss gave dict, nothing to call"}),
    (wrong.OneTensor(), {NAMED: "preference_loss gave Tensor, no dict"}),
    (wrong.OtherName(), {NAMED: "gave dpo_loss, and no loss"}),
    (wrong.OwnMetric(), {NAMED: "gave kl, which is no output; there are ['loss',"}),
    (wrong.Items(), {NAMED: "loss of preference_loss is float, no tensor"}),
    (wrong.Crashes(), {NAMED: "preference_loss raised ImportError: no module named fast_dpo"}),
    (wrong.Summed(), {OUTPUTS: "preference_loss: loss is off by", GRADIENTS: "grad_chosen is off by"}),
    (wrong.NoReference(), {OUTPUTS: "loss is off by", GRADIENTS: "grad_chosen is off by"}),
    (wrong.SeesPadding(), {OUTPUTS: "ranking_loss (ragged): loss is off by", GRADIENTS: "ranking_loss (ragged): grad"}),
    (
        wrong.Detached(),
        {GRADIENTS: "the backward of preference_loss raised RuntimeError: element 0 of tensors"},
    ),
    (wrong.NoGradient(), {GRADIENTS: "does not require grad"}),
    (wrong.HalfDetached(), {GRADIENTS: "preference_loss gives no gradient for rejected"}),
    (wrong.HalfTheGradient(), {GRADIENTS: "grad_chosen is off by 5.0e-01"}),
    (wrong.Beforehand(), {"computes_when_it_is_called": "a call for decode_attention (full) ran no op"}),
    (wrong.GraphBeforehand(), {"each_call_gives_the_same": "the second call for preference_loss raised RuntimeError"}),
    (wrong.AddsUp(), {"each_call_gives_the_same": "the second call for preference_loss gave others: loss differs"}),
    (wrong.OneCase(), {"keeps_cases_apart": "called after another case was prepared and called, gave others: loss"}),
    (wrong.OwnBeta(), {"reads_the_options": "preference_loss with beta=0.06: loss is off by"}),
    (wrong.InPlace(), {"leaves_the_inputs_as_they_are": "case.packed['ref_chosen'] was changed"}),
    (wrong.Backward(), {"leaves_the_inputs_as_they_are": "case.packed['chosen'] has a gradient"}),
    (wrong.Float32Alone(), {"computes_the_dtypes_it_takes": "(float64), which raised TypeError: expected float32"}),
    (wrong.OneThread(), {"leaves_the_process_as_it_was": "num_threads "}),
    (wrong.LowPrecision(), {"leaves_the_process_as_it_was": "float32_matmul_precision "}),
]


@pytest.mark.parametrize(("plugin", "expected"), MISTAKES, ids=lambda value: type(value).__name__)
def test_each_mistake_fails_its_own_check(plugin, expected):
    found_alone(failed(plugin, "benchmark", CHECKS), expected)


def test_each_check_has_a_mistake():
    assert {check.name for check in CHECKS} == {name for _, expected in MISTAKES for name in expected}


def test_each_op_has_a_small_shape():
    assert set(SHAPES) == set(operations())


@pytest.mark.parametrize("plugin", wrong.RIGHT, ids=lambda value: type(value).__name__)
def test_right_ones_pass(plugin):
    assert [str(one) for one in failed(plugin, "benchmark", CHECKS).values()] == []


@pytest.mark.parametrize("name", ["eager", "vectorised", "definition", "cpu", "copies"])
def test_ours(name):
    found = outcomes(load("benchmark", name)(), "benchmark", CHECKS)
    skipped = {check: one.reason for check, one in found.items() if one.status == "skipped"}
    assert [str(one) for one in found.values() if one.status == "failed"] == []
    assert skipped in ({}, {"reads_the_options": "none of its ops has options"}) or name == "cpu"


@pytest.mark.parametrize("name", ["triton", "cuda", "torchrl", "trl", "liger", "flash_attn", "torch_varlen"])
def test_ours_that_may_not_run_here(name):
    found = outcomes(load("benchmark", name)(), "benchmark", CHECKS)
    assert [str(one) for one in found.values() if one.status == "failed"] == []
    assert found["outputs_are_those_of_the_definition"].status in ("passed", "skipped")
    assert found["outputs_are_those_of_the_definition"].reason != ""
