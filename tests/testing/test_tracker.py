"""Trackers: right ones pass, each fault fails its own check, ours pass."""

import pytest

from rlhf_core.plugins import load
from rlhf_core.testing.checks.tracker import CHECKS

from . import wrong_tracker as wrong
from .mistakes import failed, found_alone, outcomes

MISTAKES = [
    (
        wrong.FileForEachMetric(),
        {
            "follows_a_run": "FileNotFoundError",
            "takes_metrics_that_come_and_go": "FileNotFoundError",
            "leaves_the_metrics_as_they_were": "FileNotFoundError",
        },
    ),
    (
        wrong.TrainingAlone(),
        {
            "follows_a_run": "ValueError: unknown phase eval",
            "takes_metrics_that_come_and_go": None,
            "keeps_every_row": None,
            "leaves_the_runs_files_alone": None,
        },
    ),
    (
        wrong.FixedColumns(),
        {"takes_metrics_that_come_and_go": "appeared_later", "leaves_the_runs_files_alone": "accuracy"},
    ),
    (
        wrong.FixedColumns(extras="ignore"),
        {"takes_metrics_that_come_and_go": "appeared_later and of_eval came after the first row, and is in no file"},
    ),
    (wrong.FirstMetricNeeded(), {"takes_metrics_that_come_and_go": "ValueError: max()"}),
    (wrong.StrictJson(), {"takes_any_number": "a row with loss=nan raised ValueError"}),
    (wrong.WholeNumbersRounded(), {"takes_any_number": "a row with loss=nan raised ValueError"}),
    (wrong.Buffered(), {"keeps_every_row": "4 of 134 rows are in no file"}),
    (wrong.NeverFlushed(), {"keeps_every_row": "numbers.jsonl is empty after close()"}),
    (
        wrong.OneRowAStep(),
        {"keeps_every_row": "15 of 134 rows are in no file after close(): step 1000 (train), step 9000 (train), …"},
    ),
    (wrong.TakesOut(), {"leaves_the_metrics_as_they_were": "'length': 12.0}, and left {'loss': 1.5"}),
    (wrong.PutsIn(), {"leaves_the_metrics_as_they_were": "'step': 1000"}),
    (wrong.OpenedByTheFirstRow(), {"closes_without_a_row": "AttributeError"}),
    (wrong.ClosedOnce(), {"closes_twice": "AttributeError"}),
    (
        wrong.NewFolder(),
        {"goes_on_after_a_resume": "start() in the folder of a run that was stopped raised FileExistsError"},
    ),
    (wrong.BeginsAnew(), {"goes_on_after_a_resume": "from_the_first_part and 4301.5 and 4302.5 was in a file"}),
    (wrong.Locked(), {"goes_on_after_a_resume": "of a run that was killed raised FileExistsError"}),
    (wrong.OneWriter(), {"keeps_runs_apart": 'that logged "of_the_second_run" holds "of_the_first_run"'}),
    (wrong.ClosesAll(), {"keeps_runs_apart": "after another tracker was closed raised RuntimeError: closed"}),
    (wrong.IntoTheRunsMetrics(), {"leaves_the_runs_files_alone": "metrics.jsonl of the run was changed"}),
    (wrong.EmptiesTheFolder(), {"leaves_the_runs_files_alone": "plugins.json, which the run had written, is gone"}),
    (wrong.ChangesDirectory(), {"leaves_the_process_as_it_was": "the working directory became 'run_0'"}),
    (wrong.NamedByChance(), {"leaves_the_process_as_it_was": "the state of random was changed"}),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # that a file is left open is the mistake of one
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("plugin", "expected"), MISTAKES, ids=lambda value: type(value).__name__)
def test_each_mistake_fails_its_own_check(plugin, expected):
    found_alone(failed(plugin, "tracker", CHECKS), expected)


def test_each_check_has_a_mistake():
    assert {check.name for check in CHECKS} == {name for _, expected in MISTAKES for name in expected}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a run that was killed closes nothing
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("plugin", wrong.RIGHT, ids=lambda value: type(value).__name__)
def test_right_ones_pass(plugin):
    assert [str(one) for one in failed(plugin, "tracker", CHECKS).values()] == []


def test_what_writes_nothing_here_is_not_read():
    assert (
        outcomes(wrong.Remote(), "tracker", CHECKS)["keeps_every_row"].reason
        == "it writes no file in which numbers can be read"
    )


def test_jsonl():
    assert {
        name: str(one)
        for name, one in outcomes(load("tracker", "jsonl")(), "tracker", CHECKS).items()
        if one.status != "passed"
    } == {}


def test_tensorboard():
    pytest.importorskip("tensorboard")
    found = outcomes(load("tracker", "tensorboard")(), "tracker", CHECKS)
    skipped = {name: one.reason for name, one in found.items() if one.status != "passed"}
    assert skipped == {"keeps_every_row": "it writes no file in which numbers can be read"}
