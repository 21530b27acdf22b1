"""Overrides for one stage of a pipeline, on the command line and in sweeps."""

from pathlib import Path

import pytest

from rlhf_core.errors import UserError
from rlhf_core.hydra_glue import compose_train, launch, resolve_stage, stage_overrides
from rlhf_core.settings import PipelineSettings
from rlhf_core.stage_overrides import merge, pack, unpack

MINI = """# @package _global_
name: mini
stages:
  a: [policy=still, algorithm=still, data=still, rollout=null, data.file=q]
  b: [policy=still, "policy.path=${stage:a}", algorithm=still, data=still, rollout=null, data.file=q, reward=brevity]
"""


@pytest.fixture
def mini(jobs, tmp_path):
    """Run a small pipeline of the user's own."""
    folder = tmp_path / "mine" / "pipeline"
    folder.mkdir(parents=True)
    (folder / "mini.yaml").write_text(MINI)

    def run(*overrides: str) -> int:
        return jobs.pipeline("--config-dir", str(tmp_path / "mine"), "pipeline=mini", *overrides)

    return run


def test_stages_keep_their_place_holders(mini, jobs):
    assert mini() == 0
    settings = jobs.seen[0].settings
    assert type(settings) is PipelineSettings
    assert (settings.name, list(settings.stages)) == ("mini", ["a", "b"])
    assert settings.stages["b"][1] == "policy.path=${stage:a}"
    assert jobs.seen[0].folder.name.endswith("_mini")


GIVEN = [
    "b.algorithm.kl_coef=0.1",
    "b.reward=mixture",
    "+b.reward@reward.parts.x=brevity",
    "b.data.file='two words, ${seed} and ''quotes'''",
    "b.policy.path=${stage:a}",
    "~b.tracker",
]


def test_overrides_reach_their_stage_as_typed(mini, jobs):
    assert mini(*GIVEN[:3], "a.seed=3", *GIVEN[4:]) == 0
    composed = jobs.seen[0]
    assert stage_overrides(composed.settings) == {
        "a": ["seed=3"],
        "b": [
            "algorithm.kl_coef=0.1",
            "reward=mixture",
            "+reward@reward.parts.x=brevity",
            "policy.path=${stage:a}",
            "~tracker",
        ],
    }
    assert composed.overrides == ["pipeline=mini", *GIVEN[:3], "a.seed=3", *GIVEN[4:]]


@pytest.mark.parametrize("text", [*GIVEN, "b.x='it\\'s'", "++b.y=[1,{a: 2}]", "samples=3", "pipeline=mini"])
def test_packing_can_be_undone(text):
    assert unpack(pack([text], multirun=False)) == [text]


def test_a_sweep_over_one_stage(mini, jobs):
    assert mini("-m", "b.algorithm.kl_coef=0.1,0.2", "b.reward=choice(thirdparty,brevity)", "a.seed=range(2)") == 0
    found = [stage_overrides(composed.settings) for composed in jobs.seen]
    assert len(found) == 8
    assert found[0] == {"a": ["seed=0"], "b": ["algorithm.kl_coef=0.1", "reward=thirdparty"]}
    assert found[7] == {"a": ["seed=1"], "b": ["algorithm.kl_coef=0.2", "reward=brevity"]}
    assert jobs.seen[7].overrides == ["pipeline=mini", "b.algorithm.kl_coef=0.2", "b.reward=brevity", "a.seed=1"]


def test_stages_are_composed_inside_the_pipeline(mini, jobs, tmp_path):
    folder = tmp_path / "mine" / "reward"
    folder.mkdir()
    (folder / "mine.yaml").write_text("defaults: [thirdparty]\nscale: 3\n")
    stages = []

    def act(composed):
        given = merge(composed.settings.stages["b"], stage_overrides(composed.settings)["b"])
        line = [resolve_stage(text, {"a": [Path("odd, (name)")]}) for text in given]
        stages.append(compose_train(line, tmp_path / "b"))

    jobs.act = act
    assert mini("b.reward=mine", "b.reward.scale=4") == 0
    (stage,) = stages
    assert stage.settings.policy.path == "odd, (name)"
    assert stage.settings.reward.scale == 4.0  # the preset comes from the pipeline's own --config-dir
    assert stage.settings.run_dir == str(tmp_path / "b")
    assert stage.command == "train"


def test_resume_of_a_pipeline(mini, jobs, tmp_path):
    assert mini("b.algorithm.kl_coef=0.1", "run_dir=p") == 0
    assert launch("pipeline", ["--config-dir", str(tmp_path / "mine"), "resume=p", "b.seed=2"]) == 0
    again = jobs.seen[1]
    assert again.resume
    assert again.folder == tmp_path / "p"
    assert stage_overrides(again.settings) == {"b": ["algorithm.kl_coef=0.1", "seed=2"]}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("bb.seed=1", "bb.seed=1: pipeline mini has no stage bb. Did you mean b?; stages: a, b"),
        ("reward.scale=1", "reward.scale=1: say for which stage, e.g. STAGE.reward.scale=1; stages: a, b"),
        ("reward=brevity", "reward=brevity: say for which stage, e.g. STAGE.reward=brevity"),
        ("smaples=3", "smaples: no such key in rlhf pipeline. Did you mean samples?"),
        ("samples=x", "samples: expected int, got 'x' (str)"),
        ("b.seed=1,2", "b.seed=1,2: several values need -m to sweep over them; for a list write b.seed=[1,2]"),
        ("b.algorithm.kl_coef=x", "algorithm.kl_coef: expected float, got 'x' (str)"),
    ],
)
def test_mistakes(mini, jobs, capsys, tmp_path, typed, message):
    def act(composed):
        compose_train(merge(composed.settings.stages["a"], stage_overrides(composed.settings).get("b", [])), tmp_path)

    jobs.act = act
    assert mini(typed) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_interval_in_a_stage_is_refused(mini, capsys):
    assert mini("-m", "b.algorithm.kl_coef=interval(0,1)") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "list the values" in line


def test_another_plugin_drops_the_old_ones_values():
    base = ["algorithm=ppo", "reward=learned", "reward.path=x", "+reward@reward.parts.a=b", "rewards=1"]
    assert merge(base, ["reward=sentiment"]) == ["algorithm=ppo", "rewards=1", "reward=sentiment"]
    assert merge(base, ["reward.path=y"]) == [*base, "reward.path=y"]
    assert merge(base, ["reward=learned"]) == [*base, "reward=learned"]
    judges = ["evaluator=[win_rate,loss]", "evaluator.win_rate.swap=false", "evaluator.loss.size=3"]
    assert merge(judges, ["evaluator=[win_rate]"]) == ["evaluator.win_rate.swap=false", "evaluator=[win_rate]"]


def test_unknown_earlier_stage():
    with pytest.raises(UserError, match=r"no earlier stage sfft. Did you mean sft\?; earlier stages: sft"):
        resolve_stage("policy.path=${stage:sfft}", {"sft": [Path("x")]})
