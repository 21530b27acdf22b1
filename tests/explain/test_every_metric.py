"""Whatever a run logs is explained, and whatever is explained is logged by a run."""

import json
from types import SimpleNamespace

import pytest

from rlhf_core.contracts.data import Ranking
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.describe import describe
from rlhf_core.explain.metrics import GROUPS, find, names
from rlhf_core.plugins import available
from rlhf_core.trainer import Trainer
from rlhf_plugins.evaluator.ranking_accuracy import RankingAccuracy

ALGORITHMS = [name for name, info in available("algorithm").items() if not describe(info).problem]
EVALUATORS = [name for name, info in available("evaluator").items() if not describe(info).problem]
SMALL = {
    **dict.fromkeys(("batch_size", "prompts", "eval_prompts", "eval_examples", "demonstrations"), 4),
    **dict.fromkeys(("responses", "samples"), 2),
}
"""Numbers of an algorithm, where it has them, that make a run short."""
OPTIONS = {
    "ppo": [
        "algorithm.ptx_coef=0.1",
        "algorithm.importance_cap=2",
        "algorithm.kl_in=loss",
        "algorithm.kl_estimator=k2",
    ],
    "rank": ["algorithm.temperature=0.1"],
}
"""What brings out metrics that a default run does not have."""


@pytest.fixture(scope="session")
def logged() -> dict[str, set[str]]:
    """Names of metrics by algorithm; each test of one adds to it."""
    return {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_an_algorithm_logs_is_explained(algorithm, start, checkpoints, reward_checkpoint, logged):
    fields = {field.name: field.type for field in describe(available("algorithm")[algorithm]).fields}
    small = [f"algorithm.{name}={value}" for name, value in SMALL.items() if fields.get(name) == "int"]
    limits = [f"evaluator.{name}.limit=4" for name in ("perplexity", "ranking_accuracy")]
    stage = start(
        f"algorithm={algorithm}", "policy=hf", f"policy.path={checkpoints['llama']}", "rollout.max_new_tokens=4",
        "reward=sum", "+reward@reward.parts.quality=learned", f"reward.parts.quality.path={reward_checkpoint}",
        f"evaluator=[{','.join(EVALUATORS)}]", *limits, "trainer.max_steps=1", "trainer.checkpoint_every=0",
        *small, *OPTIONS.get(algorithm, []),
    )  # fmt: skip
    Trainer(stage.run, stage.algorithm).fit()
    rows = [json.loads(line) for line in (stage.run.folder / "metrics.jsonl").read_text().splitlines()]
    logged[algorithm] = {name for row in rows for name in row} - {"step", "phase"}
    assert rows
    assert not [name for name in logged[algorithm] if not find(name)]


def test_the_raters_ceiling_is_logged_where_there_are_ratings(logged):
    rated = Ranking("p", ["a", "bb"], (0.0, 1.0), ((4.0, 3.0), (1.0, 2.0)))
    evaluator = RankingAccuracy(baselines={})
    evaluator.setup(SimpleNamespace(data=SimpleNamespace(rankings=lambda split: [rated])))
    measured = evaluator.evaluate(
        Subject(scorer=SimpleNamespace(score=lambda samples: SimpleNamespace(tolist=lambda: [1, 0])))
    )
    logged["ratings"] = set(measured)
    assert measured["human"] == measured["accuracy"] == 1
    assert all(find(name) for name in measured)


def test_no_explanation_is_of_something_that_nothing_logs(logged):
    if not {*ALGORITHMS} <= logged.keys():
        pytest.skip("needs the other tests of this file")
    seen = {name for found in logged.values() for name in found}
    unused = [metric.title for group in GROUPS for metric in group.metrics if not any(map(metric.explains, seen))]
    assert not unused
    for name in set(names()) - {name for name in names() if "NAME" in name}:
        assert name in seen, f"{name} is explained beside others but never logged"
