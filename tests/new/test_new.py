"""``rlhf new``: what a new author gets is installed, tested and trained, as its README says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_core import cli
from rlhf_core.contracts import CONTRACTS
from rlhf_core.errors import UserError
from rlhf_core.new import main

from ..installing import editable

ROOT = Path(__file__).parents[2]
KINDS = tuple(CONTRACTS)
TRAINED = tuple(kind for kind in KINDS if kind != "benchmark")
SMALL = ["trainer.max_steps=1", "trainer.microbatch_tokens=2048", "device=cpu"]


@pytest.fixture
def installed(packages, site, rlhf, tmp_path) -> Callable:
    """Run ``rlhf`` in a copy of one of the packages, with all of them installed."""

    def run(kind: str, *words: str):
        folder = tmp_path / kind
        if not folder.exists():
            shutil.copytree(packages[kind], folder)
        return rlhf(folder, *words, before=f"sys.path.insert(0, {str(site)!r})")

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, packages):
    found = {path.relative_to(packages[kind]).as_posix() for path in packages[kind].rglob("*") if path.is_file()}
    name = f"my_{kind}"
    expected = {".gitignore", "README.md", "pyproject.toml", f"tests/test_{name}.py"}
    expected |= {f"{name}/__init__.py", f"{name}/py.typed", f"{name}/{kind}.py"}
    expected |= {f"{name}/conf/experiment/{name}.yaml"} if kind != "benchmark" else set()
    expected |= {"examples.jsonl"} if kind not in ("benchmark", "data") else set()
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_is_a_page(kind, packages):
    text = (packages[kind] / f"my_{kind}" / f"{kind}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert "rlhf_plugins" not in text
    registered = tomllib.loads((packages[kind] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert registered[f"rlhf.{kind}"] == {f"my_{kind}": f"my_{kind}.{kind}:My{kind.title()}"}


def test_linters_find_nothing(packages, tmp_path):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    del ours["lint"]["isort"]  # what is first party here is third party there
    rules = [f"line-length = {ours['line-length']}", "[lint]"]
    rules += [f"{name} = {ours['lint'][name]}" for name in ("select", "ignore")]
    rules += ['pydocstyle.convention = "google"', 'per-file-ignores = {"tests/**" = ["D"]}']
    (tmp_path / "ruff.toml").write_text("\n".join(rules))
    for folder in packages.values():
        for command in (["check"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(tmp_path / "ruff.toml"), "."]
            done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def test_types_are_strict(packages, tmp_path):
    modules = [str(folder / folder.name / f"{kind}.py") for kind, folder in packages.items()]
    # Without looking into torch, which takes a minute: what is of another library's types is Any.
    lenient = ["--follow-imports=skip", "--ignore-missing-imports", "--allow-subclassing-any", "--no-warn-return-any"]
    command = [sys.executable, "-m", "mypy", "--strict", *lenient, "--cache-dir", str(tmp_path), *modules]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_their_tests_pass(packages, site, tmp_path):
    folders = [str(folder / "tests") for folder in packages.values()]
    # To be imported in a process of its own takes seconds, and one of them has shown it.
    chosen = ["-k", "not imports_ or my_reward", "-p", "no:cacheprovider", "-q", "-rs"]
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *chosen, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout


@pytest.mark.parametrize("kind", TRAINED)
def test_the_preset_trains(kind, installed, tmp_path):
    done = installed(kind, "train", f"experiment=my_{kind}", f"run_dir={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warn") == 0
    used = json.loads((tmp_path / "run" / "plugins.json").read_text())
    assert {"kind": kind, "name": f"my_{kind}", "distribution": f"my-{kind}"}.items() <= next(
        row for row in used if row["kind"] == kind
    ).items()
    assert (tmp_path / "run" / "result" / "config.json").exists()


def test_a_reward_alone_is_enough(installed, data, tmp_path):
    small = ["policy.hidden=32", "policy.layers=1", "policy.vocabulary=320", f"run_dir={tmp_path / 'run'}", *SMALL]
    done = installed("reward", "train", "reward=my_reward", *data, *small)
    assert done.returncode == 0, done.stderr


def commands(kind: str, packages: dict[str, Path]) -> list[list[str]]:
    """The lines of a README's code block that begin with ``rlhf``."""
    (block,) = re.findall(r"```bash\n(.*?)```", (packages[kind] / "README.md").read_text(), re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("rlhf ")]


@pytest.mark.parametrize("kind", KINDS)
def test_commands_of_the_readme_are_understood(kind, packages, installed):
    found = commands(kind, packages)
    assert len(found) >= 4
    for _, command, *words in found:
        if command == "check":  # the generated tests ask the same
            continue
        words += ["--cfg", "job"] * (command == "train")
        if "run" in words:
            words = [word for word in words if not word.startswith("shape=")] + ["shape=4x3", "reps=3", "seconds=0.1"]
        done = installed(kind, command, *words)
        assert done.returncode == 0, done.stderr


def test_an_editable_install_is_listed_as_it_is_written(packages, tmp_path):
    source = shutil.copytree(packages["reward"], tmp_path / "source")
    hook = editable(source, tmp_path)
    module = source / "my_reward" / "reward.py"
    module.write_text(module.read_text().replace("The share of", "The part of"))
    command = [sys.executable, "-m", "rlhf_core.cli", "info", "reward=my_reward", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(hook)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    about = json.loads(done.stdout)
    assert about["problem"] == ""
    assert about["summary"].startswith("The part of ``patterns``")
    assert about["file"] == str(module)
    assert about["presets"] == ["experiment=my_reward"]
    assert all(field["doc"] for field in about["fields"])


@pytest.mark.parametrize("kind", TRAINED)
def test_settings_are_documented(kind, installed):
    about = json.loads(installed(kind, "info", f"{kind}=my_{kind}", "--json").stdout)
    obvious = {"policy": {"layers", "heads"}, "rollout": {"max_new_tokens", "nudge"}}.get(kind, set())
    assert {field["name"] for field in about["fields"] if not field["doc"]} <= obvious
    assert about["summary"]


def test_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "reward", "clear-answer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "clear_answer/"
    assert "  clear_answer/reward.py" in lines
    assert lines[-4:] == [
        "  cd clear_answer",
        "  pip install -e . pytest",
        "  pytest",
        "  rlhf train experiment=clear_answer",
    ]
    project = tomllib.loads((tmp_path / "clear_answer" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "clear-answer"
    assert "class ClearAnswer:" in (tmp_path / "clear_answer" / "clear_answer" / "reward.py").read_text()


def test_an_empty_folder_may_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clear_answer").mkdir()
    assert main(["reward", "clear_answer"]) == 0
    with pytest.raises(UserError, match=r"^clear_answer: is there already; choose another place by --folder DIR$"):
        main(["reward", "clear_answer"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "new: expected a kind and a name, got nothing; usage: rlhf new KIND NAME [--folder DIR]"),
        ("reward", "new: expected a kind and a name, got reward; usage: "),
        ("reward a b", "new: expected a kind and a name, got reward a b; usage: "),
        ("rewrd mine", "rewrd: no such kind; there are: policy, reward, "),
        ("reward mine --force", "--force: no such option of rlhf new; there is --folder DIR"),
        ("reward mine --folder", "--folder: expected a folder; usage: "),
        ("reward MyReward", "MyReward: is no name; take small letters, digits and single underscores, e.g. my_reward"),
        ("reward 2nd", "2nd: is no name; take small letters, digits and single underscores, e.g. my_reward"),
        ("reward a__b", "a__b: is no name; "),
        ("reward größe", "größe: is no name; "),
        ("reward my.reward", "my.reward: is no name; take small letters, digits and single underscores, e.g. my_rew"),
        ("reward lambda", "lambda: means something else to Python or to the command line; take e.g. my_lambda"),
        ("reward null", "null: means something else to Python or to the command line; take e.g. my_null"),
        ("reward true", "true: means something else"),
        ("reward tests", "tests: means something else"),
        ("reward value-error", "value-error: the class would be ValueError, which is Python's own; take e.g. my_value"),
        ("reward json", "json: is a module of Python's own; take another name, e.g. my_json"),
        ("reward numpy", "numpy: a package of this name is installed; take another name, e.g. my_numpy"),
        ("reward rlhf-core", "rlhf_core: a package of this name is installed"),
        ("reward sentiment", "sentiment: rlhf-core has a reward of this name; take another name, e.g. my_sentiment"),
        ("benchmark eager", "eager: rlhf-core has a benchmark of this name"),
        ("reward bigger", "bigger: experiment=bigger is a preset already; take another name, e.g. my_bigger"),
        ("reward samples", "samples: its files need another Samples than the class; take e.g. my_samples"),
        ("policy path", "path: its files need another Path than the class; take e.g. my_path"),
        ("reward mine --folder full", "full: is there already; choose another place by --folder DIR"),
        ("reward mine --folder=full/file", "full/file: is there already; choose another place by --folder DIR"),
        ("reward mine --folder full/file/deeper", "cannot be written (Not a directory); choose another --folder"),
    ],
)
def test_refused(typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError) as refusal:
        main(typed.split())
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_writing_needs_nothing_heavy():
    source = "import rlhf_core.new, sys; print(*{'torch', 'hydra', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
