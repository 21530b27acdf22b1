"""What the README shows works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
RLHF = [sys.executable, "-m", "rlhf_core.cli"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.startswith(("rlhf train", "rlhf pipeline"))]


def in_a_new_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RLHF, *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_there_are_commands_to_try():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", [text for text in commands() if "resume=" not in text])
def test_a_command_composes(command, rlhf, tmp_path):
    arguments = [word for word in shlex.split(command)[1:] if word not in ("-m", "--multirun", "--cfg", "job")]
    if "-m" in shlex.split(command):  # a sweep's first job
        arguments = [word.split(",")[0] if re.search(r"=[\d.]+,", word) else word for word in arguments]
    shown = rlhf(tmp_path, *arguments, "--cfg", "job")
    assert shown.returncode == 0, shown.stderr


def test_the_plugin_of_the_readme_is_chosen_typed_and_scores(tmp_path, installed):
    (module,) = blocks("python")
    (registration,) = blocks("toml")
    installed(tmp_path, "reward", "my_reward", module, registration)
    chosen = ["train", "reward=brevity", "reward.target=12", "--cfg", "job", "-p", "reward"]
    assert "target: 12" in in_a_new_process(*chosen, PYTHONPATH=str(tmp_path)).stdout
    chosen[2] = "reward.target=twelve"
    assert "reward.target" in in_a_new_process(*chosen, PYTHONPATH=str(tmp_path)).stderr
    checked = in_a_new_process("check", "reward=brevity", PYTHONPATH=str(tmp_path))
    assert checked.returncode == 0, checked.stdout
    scope: dict = {"__name__": "my_reward"}
    exec(compile(module, "my_reward.py", "exec"), scope)
    samples = type("Samples", (), {"responses": ["one two", "a " * 20]})
    assert scope["Brevity"](target=20).score(samples).tolist() == pytest.approx([-0.9, 0.0])
