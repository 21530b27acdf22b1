"""``rlhf bench step``: the real algorithm, timed from outside and left as it was."""

import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from rlhf_core import kernels, sampling
from rlhf_core.bench.phases import Phases

SMALL = (
    "policy.vocabulary=300", "policy.hidden=32", "policy.layers=1", "algorithm.batch_size=8", "algorithm.epochs=1",
    "rollout.max_new_tokens=8", "device=cpu",
)  # fmt: skip


def test_a_step_is_divided_among_its_phases(bench, tmp_path):
    before = kernels.shaped_gae, kernels.ppo_loss, sampling.score_with_parts, torch.Tensor.backward
    done = bench("step", "steps=2", "warmup=1", f"out={tmp_path / 'step.json'}", *SMALL)
    assert done.code == 0, done.err
    assert before == (kernels.shaped_gae, kernels.ppo_loss, sampling.score_with_parts, torch.Tensor.backward)
    found = json.loads((tmp_path / "step.json").read_text())
    calls = {phase["phase"]: phase["calls"] for phase in found["phases"]}
    assert calls["rollout"] == calls["reward"] == calls["GAE"] == 1
    assert calls["loss"] == calls["backward"] == calls["log-probs of the policy"] == 2  # minibatches
    assert calls["optimiser"] == 6  # clip, step and zero_grad of each
    assert {"log-probs of the reference", "values", "other"} <= set(calls)
    total = sum(phase["ms"] for phase in found["phases"])
    assert 0 < total <= sum(found["step_ms"]) / 2  # nothing is counted twice
    assert "8 prompts" in done.out and "rollout" in done.out and "share" in done.out
    assert found["kernels"]["shaped_gae"]["backend"] in ("cpu", "eager")


def test_an_override_that_is_none_is_told_as_by_train(bench):
    done = bench("step", "algorithm.batchsize=8")
    assert done.code == 1 and "algorithm.batchsize" in done.err and done.err.count("\n") == 1


class Work:
    """Something to watch, and the time it takes."""

    now: ClassVar[float] = 0.0

    def outer(self) -> str:
        Work.now += 2
        self.inner()
        Work.now += 1
        return "done"

    def inner(self) -> None:
        Work.now += 5


def test_an_inner_phase_stops_the_clock_of_the_outer(monkeypatch):
    monkeypatch.setattr("rlhf_core.bench.phases.time", SimpleNamespace(perf_counter=lambda: Work.now))
    work, phases = Work(), Phases(torch.device("cpu"))
    with phases.watching((work, "outer", "outside"), (work, "inner", "inside"), (None, "absent", "nothing")):
        assert work.outer() == "done"
    assert phases.calls == {"outside": 1, "inside": 1}
    assert phases.seconds == {"outside": 3, "inside": 5}
    assert vars(work) == {}  # the wrappers are gone


def test_a_phase_ends_where_its_function_raises():
    class Failing:
        def run(self) -> None:
            raise ValueError("no")

    failing, phases = Failing(), Phases(torch.device("cpu"))
    with pytest.raises(ValueError, match="no"), phases.watching((failing, "run", "failing")):
        failing.run()
    assert phases.calls == {"failing": 1} and phases._open == [] and vars(failing) == {}
