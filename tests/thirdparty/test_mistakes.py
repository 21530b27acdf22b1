"""Each mistake gives one line that names the key and the remedy."""

import pytest

CASES = {
    "reward=thirdparty reward.scal=5": "reward.scal: no such key in thirdparty. Did you mean scale?",
    "reward=thirdparty reward.scale=abc": "reward.scale: expected float, got 'abc' (str)",
    "reward=thirdparty reward.scale=[1]": "reward.scale: expected float, got [1] (list)",
    "reward=thirdparty reward.floor=x": "reward.floor: expected float | None, got 'x' (str)",
    "reward=thirdparty reward.marks=abc": "reward.marks: expected list[str], got 'abc' (str)",
    "reward=thirdparty +reward.scal=1": "reward.scal: no such key in thirdparty. Did you mean scale?",
    "reward=mixture +reward@reward.parts.a=brevity reward.parts.a.targt=1": (
        "reward.parts.a.targt: no such key in brevity. Did you mean target?"
    ),
    "reward=mixture +reward@reward.parts.a=brevity reward.parts.a.target=x": (
        "reward.parts.a.target: expected int, got 'x' (str)"
    ),
    "rewrd=thirdparty": "rewrd: no such key in rlhf train. Did you mean reward?",
    "seed=x": "seed: expected int, got 'x' (str)",
    "trainer.max_step=3": "trainer.max_step: no such key in trainer. Did you mean max_steps?",
    "reward.scale=3": "reward.scale: no reward of this name is chosen; choose it with reward=NAME",
    "tracker.memory.size=3": "tracker.memory: no tracker of this name is chosen; choose it with tracker=[memory]",
    "data.file=???": "data.file: required; give it as data.file=VALUE",
    "kernels.ops.gae=cpu": "kernels.ops.gae: no such key in kernels.ops; +kernels.ops.gae=… adds it",
    "+reward=thirdparty": "reward: chosen twice; to replace the first choice write it without +",
    "reward=thirdparty,brevity": (
        "reward=thirdparty,brevity: several values need -m to sweep over them; "
        "for a list write reward=[thirdparty,brevity]"
    ),
    "foo": "foo: cannot be read as key=value; missing EQUAL at '<EOF>'",
    "--foo": "unrecognized arguments: --foo; see rlhf train --help",
    "--config-name nope": "nope: no such config on the search path (see --info searchpath)",
}


@pytest.mark.parametrize("typed", CASES)
def test_one_line(jobs, capsys, typed):
    assert jobs.train(*typed.split()) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {CASES[typed]}\n"
    assert captured.out == ""
    assert jobs.seen == []


@pytest.mark.parametrize(
    ("typed", "near", "listed"),
    [
        ("reward=thirdpaty", "Did you mean thirdparty?", "brevity"),
        ("tracker=[memori]", "Did you mean memory?", "echo"),
        ("experiment=lod", "Did you mean loud?", "loud"),
        ("reward=mixture +reward@reward.parts.a=brevty", "Did you mean brevity?", "thirdparty"),
    ],
)
def test_unknown_option_of_a_group(jobs, capsys, typed, near, listed):
    assert jobs.train(*typed.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(near)
    assert listed in line.partition("available: ")[2]


def test_mistake_in_a_preset_names_its_file(jobs, tmp_path, capsys):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text("# @package _global_\ntrainer: {max_step: 3}\n")
    assert jobs.train("experiment=bad", "--config-dir", str(tmp_path / "mine")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: experiment/bad.yaml: trainer.max_step: no such key in trainer. Did you mean max_steps?"


def test_missing_config_dir(jobs, capsys):
    assert jobs.train("--config-dir", "nowhere") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere" in line
