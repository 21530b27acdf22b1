"""Help, list and info read metadata and source: they import neither torch nor Hydra."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from rlhf_core.cli import main
from rlhf_core.help import COMMANDS, help_text
from rlhf_core.plugins import EXTENSIONS, KINDS, available
from rlhf_core.presets import options

CHEAP = [[], ["--help"], ["list"], ["list", "--json"], ["info", "algorithm=ppo"], ["--version"], ["nonsense"]]
HEAVY = ["torch", "hydra", "omegaconf", "transformers", "numpy", "rich", "rlhf_plugins", "yaml"]


def test_cheap_commands_import_nothing_heavy():
    commands = [*CHEAP, *([name, "--help"] for name in COMMANDS)]
    code = (
        "import sys\nfrom rlhf_core.cli import main\n"
        f"for argv in {commands!r}:\n    main(argv)\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_ends_with_examples(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rlhf {command}")
    examples = text.rpartition("examples\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(line.startswith(f"  rlhf {command}") for line in examples)
    assert main([command, "-h"]) == 0
    assert capsys.readouterr().out == text


def test_help_lists_every_option():
    text = help_text("train")
    for kind in KINDS:
        assert set(options(kind)) >= set(available(kind))
        assert ", ".join(options(kind)) in text
    assert ", ".join(options("pipeline")) in help_text("pipeline")


def examples() -> list[list[str]]:
    """The overrides in the examples of ``train`` and ``pipeline``, for one job and as a config to show."""
    lines = [
        line for name in ("train", "pipeline") for line in help_text(name).rpartition("examples\n")[2].splitlines()
    ]
    words = [shlex.split(line.partition("   ")[0] if line[2:].count("   ") else line) for line in map(str.strip, lines)]
    return [line[1:] for line in words if "-m" not in line and not any("resume=" in word for word in line)]


@pytest.mark.parametrize("argv", examples(), ids=" ".join)
def test_examples_can_be_composed(argv, capsys):
    shown = [] if "--cfg" in argv else ["--cfg", "job"]
    assert main([*argv, *shown]) == 0, capsys.readouterr().err


def test_list(capsys):
    assert main(["list", "reward"]) == 0
    text = capsys.readouterr().out
    assert "sentiment" in text
    assert "ppo" not in text
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = {(kind, name) for kind in EXTENSIONS for name in available(kind)}
    assert {(row["kind"], row["name"]) for row in rows} == names


def test_info(capsys):
    assert main(["info", "algorithm=ppo"]) == 0
    page = capsys.readouterr().out
    assert main(["info", "ppo"]) == 0
    assert capsys.readouterr().out == page
    for part in ("algorithm=ppo", "kl_coef: float", "optimizer.lr", "rlhf train algorithm=ppo", "pipeline=default"):
        assert part in page
    assert main(["info", "algorithm=ppo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"name", "type", "default", "doc"} == set(told["fields"][0])
    assert told["distribution"] == "rlhf-core"
    assert "rlhf check algorithm=ppo" in told["examples"]
    assert f"  {told['examples'][0]}" in page.splitlines()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "trian: no such command; there are: train, .*Did you mean train\\?"),
        (["list", "rewards"], "rewards: no such kind; .*Did you mean reward\\?"),
        (["list", "--jsn"], "--jsn: no such option of rlhf list; there is --json"),
        (["info"], "info takes one plugin as kind=name, got none; rlhf list shows them"),
        (["info", "reward=sentimnt"], "reward=sentimnt: no such reward; .*Did you mean sentiment\\?"),
        (["info", "rewrd=sum"], "rewrd=sum: no such kind; .*Did you mean reward\\?"),
        (["info", "nothing"], "nothing: say it as kind=name \\(rlhf list shows what there is\\)"),
        (["doctor", "--deep"], "doctor: takes --json only, got --deep"),
    ],
)
def test_mistakes(argv, message, capsys):
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()

    assert re.fullmatch(f"error: {message}", line)


def test_reader_that_goes_away():
    code = "from rlhf_core.cli import main; import sys; sys.exit(main(['list']))"
    run = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""


def test_help_of_chat_names_its_real_options(capsys):
    """The help is written here so that it needs no torch; the options live in chat.py."""
    from rlhf_core.chat import _parser

    real = {option for action in _parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert real == set(re.findall(r"--[a-z-]+", help_text("chat")))
