"""Sums of rewards: weights, schedules that follow training, parts inside parts, rewards of steps."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Samples, score_with_parts, step_rewards
from rlhf_core.errors import UserError
from rlhf_core.jsonl import JsonLines
from rlhf_plugins.reward.sum import Sum

SAMPLES = Samples([Prompt(text="x")] * 3, ["a", "bb", "ccc"], [[1]] * 3, [[5], [5, 5], [5, 5, 5]], ["eos"] * 3)


@dataclass
class Letters:
    """As many as there are, and a reward on the way at the first token."""

    steps: list[float] = field(default_factory=list)

    def setup(self, run):
        """Nothing."""

    def score(self, samples):
        return torch.tensor([float(len(text)) for text in samples.responses])


@dataclass
class OnTheWay(Letters):
    def score_steps(self, samples):
        return [[(place, value) for place, value in enumerate(self.steps[: len(ids)])] for ids in samples.response_ids]


def ready(run=None, **given):
    reward = Sum(**given)
    reward.setup(run or SimpleNamespace(step=0))
    return reward


def test_weights_and_the_names_of_parts():
    inner = Sum(parts={"more": Letters()}, weights={"more": 3.0})
    total, parts = score_with_parts(ready(parts={"plain": Letters(), "inner": inner}, weights={"plain": -1.0}), SAMPLES)
    assert total.tolist() == [2.0, 4.0, 6.0]  # −1 · n + 3 · n
    assert {name: part.tolist() for name, part in parts.items()} == {
        "plain": [1, 2, 3],
        "inner": [3, 6, 9],
        "inner/more": [1, 2, 3],
    }


@pytest.mark.parametrize(("step", "factor"), [(0, 2.0), (4, 2.0), (5, 1.75), (8, 1.0), (12, 0.0), (13, 0.0), (99, 0.0)])
def test_a_schedule_follows_the_steps(step, factor):
    run = SimpleNamespace(step=0)
    reward = ready(run, parts={"a": Letters(), "b": Letters()}, weights={"a": 10.0},
                   schedules={"a": {"start": 2.0, "end": 0.0, "first": 4, "last": 12}})  # fmt: skip
    run.step = step
    assert reward.score(SAMPLES).tolist() == pytest.approx([n * (10 * factor + 1) for n in (1, 2, 3)])


def test_rewards_on_the_way_are_weighted_too():
    parts = {"one": OnTheWay([1.0, 4.0]), "none": Letters(), "two": OnTheWay([0.5])}
    reward = ready(parts=parts, weights={"one": 2.0}, schedules={"two": {"start": 3.0, "end": 3.0}})
    assert step_rewards(reward, SAMPLES) == [
        [(0, 2.0), (0, 1.5)],
        [(0, 2.0), (1, 8.0), (0, 1.5)],
        [(0, 2.0), (1, 8.0), (0, 1.5)],
    ]
    assert step_rewards(ready(parts={"none": Letters()}), SAMPLES) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "reward.parts: empty"),
        ({"parts": {"a": Letters()}, "weights": {"b": 1.0}}, "reward.weights.b: no such part; parts are a"),
        ({"parts": {"a": Letters()}, "schedules": {"b": {}}}, "reward.schedules.b: no such part"),
        ({"parts": {"a": Letters()}, "schedules": {"a": {"first": 3, "last": 3}}}, "schedules.a.last: got 3, expected"),
        (
            {"parts": {"a": Letters()}, "schedules": {"a": {"begin": 1}}},
            "schedules.a.begin: no such key; there are",
        ),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message):
        ready(**given)


def test_a_schedule_in_a_run_that_is_resumed(rlhf, data, ppo, tmp_path):
    """The share of the reward that a part has follows the step, also after a resume, to the same bits."""
    words = [
        "train", *data, *ppo("llama", "algorithm=reinforce", "algorithm.steps=4", "trainer.checkpoint_every=2"),
        "reward=sum", "+reward@reward.parts.size=length", "+reward.schedules.size={start: 1, end: 0, last: 4}",
        "evaluator=[]",
    ]  # fmt: skip
    words = [word for word in words if not word.startswith("reward.path=")]
    whole = rlhf(tmp_path, *words, "run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    stop = "kill_when(lambda row, name: row['step'] == 3 and row['phase'] == 'train')"
    rlhf(tmp_path, *words, "run_dir=parts", before=stop)
    assert rlhf(tmp_path, "train", "resume=parts").returncode == 0
    rows, again = (list(JsonLines(tmp_path / name / "metrics.jsonl").rows()) for name in ("whole", "parts"))
    assert rows == again
    shares = [row["reward"] / row["reward/size"] for row in rows if row["phase"] == "train" and row["reward/size"]]
    assert shares == pytest.approx([1.0, 0.75, 0.5, 0.25][: len(shares)], abs=1e-4)
    assert len(shares) == 4


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("+reward.schedules.size.ennd=1", "reward.schedules.size.ennd: no such key. Did you mean end?"),
        ("+reward.schedules.size.end=high", "high"),
        ("+reward.schedules.sise={end: 1}", "reward.schedules.sise: no such part; parts are size"),
    ],
)
def test_a_schedules_typo_is_named(rlhf, data, tmp_path, word, told):
    done = rlhf(tmp_path, "train", *data, "reward=sum", "+reward@reward.parts.size=length", word)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
