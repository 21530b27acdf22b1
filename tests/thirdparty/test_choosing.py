"""A stranger's package is installed, and everything of it can be chosen, typed."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_core.hydra_glue import compose_train
from rlhf_core.plugins import provenance
from rlhf_core.settings import TrainSettings


def test_values_are_typed(jobs, capsys):
    assert jobs.train("reward=thirdparty", "reward.scale=5", "--cfg", "job", "-p", "reward") == 0
    assert "scale: 5.0" in capsys.readouterr().out  # an int on the command line, a float in the dataclass


def test_config_becomes_plugin_objects(jobs):
    assert jobs.train("reward=thirdparty", "reward.scale=5", "seed=3") == 0
    settings = jobs.seen[0].settings
    assert type(settings) is TrainSettings
    assert type(settings.reward).__name__ == "ThirdParty"
    assert settings.reward.scale == 5.0
    assert (settings.seed, settings.trainer.checkpoint_every, settings.rollout) == (3, 50, None)


def test_rewards_inside_a_reward(jobs):
    parts = ["+reward@reward.parts.brief=brevity", "reward.parts.brief.target=7", "+reward@reward.parts.x=thirdparty"]
    assert jobs.train("reward=mixture", *parts) == 0
    found = jobs.seen[0]
    assert {name: type(part).__name__ for name, part in found.settings.reward.parts.items()} == {
        "brief": "Brevity",
        "x": "ThirdParty",
    }
    assert found.settings.reward.parts["brief"].target == 7
    assert found.choices["reward@reward.parts.brief"] == "brevity"


def test_several_trackers_side_by_side(jobs):
    assert jobs.train("tracker=[memory,echo]", "tracker.memory.size=5") == 0
    tracker = jobs.seen[0].settings.tracker
    assert list(tracker) == ["memory", "echo"]
    assert tracker["memory"].size == 5


def test_presets_of_the_package(jobs):
    assert jobs.train("reward=loud") == 0
    assert jobs.train("experiment=loud") == 0
    assert jobs.train("experiment=loud", "reward.scale=2", "seed=1") == 0
    first, second, third = (composed.settings for composed in jobs.seen)
    assert (first.reward.scale, second.reward.scale, third.reward.scale) == (11.0, 11.0, 2.0)
    assert (second.seed, third.seed) == (7, 1)
    assert second.tracker["memory"].size == 5


def test_plugins_json_names_the_plugin_behind_a_preset(jobs):
    assert jobs.train("experiment=loud") == 0
    rows = provenance(jobs.seen[0].choices)
    assert {(row["kind"], row["name"]) for row in rows} == {
        ("algorithm", "still"),
        ("data", "still"),
        ("policy", "still"),
        ("reward", "thirdparty"),
        ("tracker", "memory"),
        ("tracker", "echo"),
    }
    assert {(row["distribution"], row["version"]) for row in rows} == {("rlhf-good", "1.2")}
    assert all(Path(row["file"]).is_file() for row in rows)


def test_own_config_dir_and_search_path(jobs, tmp_path):
    for name, scale in (("mine", 3), ("theirs", 4)):
        folder = tmp_path / name / "reward"
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(f"defaults: [thirdparty]\nscale: {scale}\n")
    assert jobs.train("reward=mine", "--config-dir", str(tmp_path / "mine")) == 0
    assert jobs.train("reward=theirs", f"hydra.searchpath=[file://{tmp_path}/theirs]") == 0
    assert [composed.settings.reward.scale for composed in jobs.seen] == [3.0, 4.0]
    assert any("searchpath" in line for line in jobs.seen[1].overrides)  # else a resume could not find it


def test_nobody_shadows_a_schema(jobs, tmp_path):
    folder = tmp_path / "mine" / "reward"
    folder.mkdir(parents=True)
    (folder / "thirdparty.yaml").write_text("scale: nonsense\n")
    assert jobs.train("reward=thirdparty", "--config-dir", str(tmp_path / "mine")) == 0
    assert jobs.seen[0].settings.reward.scale == 1.0


def test_null_takes_a_plugin_away(jobs):
    assert jobs.train("experiment=loud", "reward=null", "tracker=null", "~tracker.memory") == 0
    found = jobs.seen[0]
    assert found.settings.reward is None
    assert found.settings.tracker == {}
    assert "reward=null" in found.overrides


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["experiment=loud", "tracker=[echo]"], "tracker.memory: has values, but no plugin is chosen there; add trac"),
        (["+reward={a: 1}"], "reward: has values, but no plugin is chosen there; add reward=NAME, or drop them"),
    ],
)
def test_values_without_a_plugin_are_refused(jobs, capsys, typed, message):
    assert jobs.train(*typed) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert jobs.seen == []


def test_info_and_config_go_without_a_run(jobs, tmp_path, capsys):
    assert jobs.train("--info", "searchpath") == 0
    assert "plugin://rlhf" in capsys.readouterr().out
    assert jobs.train("--info", "defaults", "reward=thirdparty") == 0
    assert "reward/thirdparty" in capsys.readouterr().out
    assert jobs.seen == []
    assert list(tmp_path.iterdir()) == []


def test_compose_in_process_equals_the_command(jobs, still, tmp_path):
    overrides = ["reward=mixture", "+reward@reward.parts.a=brevity", "seed=4", f"run_dir={tmp_path}/run"]
    assert jobs.train(*overrides) == 0
    composed = compose_train([*still, *overrides], tmp_path / "run")
    assert composed.settings == jobs.seen[0].settings
    assert composed.config == jobs.seen[0].config
    assert composed.choices == jobs.seen[0].choices


@pytest.mark.parametrize("kind", ["reward", "tracker"])
def test_listed(rlhf, kind):
    rows = json.loads(rlhf("list", kind, "--json").stdout)
    assert {row["distribution"] for row in rows} >= {"rlhf-good"}
    assert all(row["kind"] == kind for row in rows)


def test_a_config_group_of_the_strangers_own(jobs, capsys):
    """A folder beside experiment/: it is chosen with +, and checked like everything else."""
    assert jobs.train("reward=thirdparty", "+audience=children") == 0
    assert jobs.seen[0].settings.reward.scale == 3.0
    assert jobs.train("reward=mixture", "+audience=children") == 1  # it has no such field
    assert "scale" in capsys.readouterr().err
    assert jobs.train("reward=thirdparty", "+audience=childen") == 1
    assert "Did you mean children?" in capsys.readouterr().err


def test_an_experiment_may_mix_packages(rlhf, still, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mixed.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - /reward@reward.parts.loud: thirdparty\n  - /reward@reward.parts.short: length\n"
        "  - override /reward: sum\n  - override /tracker: [jsonl, memory]\n"
        "reward:\n  parts: {loud: {scale: 2}, short: {maximum: 60}}\n  weights: {short: 0.5}\n"
        "  schedules: {loud: {start: 1, end: 0, last: 9}}\n"
    )
    shown = rlhf("train", *still, "-cd", "conf", "experiment=mixed", "reward.parts.loud.scale=4", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    found = OmegaConf.create(shown.stdout)
    assert (found.reward.parts.loud.scale, found.reward.parts.short.maximum) == (4.0, 60)
    assert (dict(found.reward.weights), found.reward.schedules.loud.last) == ({"short": 0.5}, 9)
    assert set(found.tracker) == {"jsonl", "memory"}
