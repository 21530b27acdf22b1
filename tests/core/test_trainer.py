"""The loop: means weighted by tokens, what is due when, and a gradient that is no number."""

import json

import pytest
import torch

from rlhf_core.contracts.algorithm import Loss
from rlhf_core.errors import UserError
from rlhf_core.jsonl import JsonLines
from rlhf_core.optimizer import AdamW
from rlhf_core.trainer import Averages, Trainer


class Counting:
    """An algorithm of one parameter that writes down what it is asked; minimises (w − 3)²."""

    total_steps = 7

    def __init__(self):
        self.optimizer, self.log, self.poison = AdamW(lr=0.1, schedule="constant"), [], None

    def setup(self, run):
        self.module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.module.weight)
        return self.module

    def arithmetic(self):
        return "7 steps"

    def collect(self, step):
        self.log.append(("collect", step))
        return step

    def minibatches(self, batch):
        for number in range(2):
            self.log.append(("minibatch", number, self.module.weight.item()))  # lazy: after the step before
            yield [1.0, 3.0]

    def loss(self, microbatch):
        value = (self.module.weight - 3).square().sum() * microbatch / 4
        if self.poison == len(self.log):
            value = value * float("nan")
        return Loss(value, {"size": microbatch, "top_max": microbatch}, weight=microbatch)

    def metrics(self, batch):
        return {"batch": float(batch)}

    def evaluate(self, step):
        self.log.append(("evaluate", step))
        return {"weight": self.module.weight.item()}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.fixture
def trainer(start, checkpoints, capsys):
    def make(*overrides):
        started = start("algorithm=sft", "policy=hf", f"policy.path={checkpoints['llama']}", *overrides)
        algorithm = Counting()
        return Trainer(started.run, algorithm), algorithm

    return make


def lines(trainer, name):
    return [json.loads(line) for line in (trainer.run.folder / name).read_text().splitlines()]


def test_means_are_weighted_and_largest_kept():
    averages = Averages()
    averages.add(Loss(torch.zeros(()), {"a": 1.0, "b_max": 5.0, "only": 2.0}, weight=1))
    averages.add(Loss(torch.zeros(()), {"a": 5.0, "b_max": torch.tensor(4.0)}, weight=3))
    averages.add(Loss(torch.zeros(()), {"a": 99.0}, weight=0))
    assert averages.result() == {"a": 4.0, "b_max": 5.0, "only": 2.0}


def test_the_loop(trainer):
    made, algorithm = trainer("trainer.eval_every=3", "trainer.checkpoint_every=2", "trainer.keep_checkpoints=9",
                              "trainer.log_every=2")  # fmt: skip
    final = made.fit()
    assert [entry for entry in algorithm.log if entry[0] == "evaluate"] == [("evaluate", step) for step in (0, 3, 6, 7)]
    assert [entry[1] for entry in algorithm.log if entry[0] == "collect"] == list(range(7))
    weights = [entry[2] for entry in algorithm.log if entry[0] == "minibatch"]
    assert weights[0] == 0 and weights == sorted(weights) and len(set(weights)) == 14
    assert final == {"weight": algorithm.module.weight.item()}
    rows = lines(made, "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [
        (0, "eval"), (2, "train"), (3, "eval"), (4, "train"), (6, "train"), (6, "eval"), (7, "train"), (7, "eval"),
    ]  # fmt: skip
    assert {**rows[1], "grad_norm": 0} == {
        "step": 2, "phase": "train", "size": 2.5, "top_max": 3.0, "grad_norm": 0, "lr": 0.1, "batch": 1.0,
    }  # fmt: skip
    saved = sorted(path.name for path in (made.run.folder / "checkpoints").iterdir())
    assert saved == ["step_000002", "step_000004", "step_000006", "step_000007"]
    assert not any("seconds" in row for row in rows)
    assert all(row["seconds"] >= 0 for row in lines(made, "timing.jsonl"))


def test_max_steps_stops_early_and_still_evaluates_and_saves(trainer):
    made, algorithm = trainer("trainer.max_steps=1", "trainer.checkpoint_every=0")
    made.fit()
    assert [entry for entry in algorithm.log if entry[0] == "evaluate"] == [("evaluate", 0), ("evaluate", 1)]
    assert [path.name for path in (made.run.folder / "checkpoints").iterdir()] == ["step_000001"]


def test_a_gradient_that_is_no_number_stops_before_it_is_taken(trainer):
    made, algorithm = trainer()
    algorithm.poison = 6  # the second step's first minibatch: evaluate, collect, two minibatches, collect, this one
    with pytest.raises(UserError, match=r"^algorithm.optimizer.lr: the gradient is nan at step 2; lower the learning"):
        made.fit()
    assert torch.isfinite(algorithm.module.weight).all()


def test_the_norm_of_a_gradient_is_clipped_and_reported_as_it_was(trainer):
    made, algorithm = trainer()
    algorithm.module.weight.grad = torch.full((1, 1), 8.0)
    assert float(made.clip_gradients()) == 8.0
    assert float(algorithm.module.weight.grad) == pytest.approx(1.0, rel=1e-5)
    algorithm.optimizer.max_grad_norm = 0
    algorithm.module.weight.grad = torch.full((1, 1), 8.0)
    assert float(made.clip_gradients()) == float(algorithm.module.weight.grad) == 8.0


def test_rows_are_rewound_and_a_row_cut_short_is_passed_over(tmp_path):
    rows = JsonLines(tmp_path / "metrics.jsonl")
    for step in (0, 1, 2, 2, 3):
        rows.append({"step": step, "x": 0.1 + step, "none": None})
    before = rows.path.read_text().splitlines(keepends=True)
    with rows.path.open("a") as file:
        file.write('{"step": 4, "x": 0.')
    assert [row["step"] for row in rows.rows()] == [0, 1, 2, 2, 3]
    rows.rewind(2)
    assert rows.path.read_text() == "".join(before[:4])
    rows.rewind(-1)
    assert rows.path.read_text() == ""
    assert list(JsonLines(tmp_path / "nothing.jsonl").rows()) == []
