"""The kit itself: how checks are run, told, skipped, and what they leave of the process."""

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from rlhf_core.cli import main
from rlhf_core.errors import UserError
from rlhf_core.testing import NotApplicable, attempt, checks_of, kind_of, parametrize_with_checks, run_checks
from rlhf_core.testing.check import Check, Checks, fail, fail_if


@dataclass
class Plain:
    """Scores by length."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0

    def setup(self, run: Any) -> None:
        """Nothing."""

    def score(self, samples: Any) -> torch.Tensor:
        return torch.tensor([self.scale * len(text) for text in samples.responses], dtype=torch.float32)


@dataclass
class ByDesign(Plain):
    """Says which check it does not pass."""

    rlhf_checks: ClassVar[dict[str, str]] = {"holds": "it need not"}


def made(body) -> Check:
    checks = Checks()
    checks("two", why="one is too few", cure="add one")(body)
    return checks[0]


def holds(plugin: Any, world: Any) -> None:
    fail_if(plugin.scale == 2, came="2")


def test_outcomes():
    assert attempt(made(holds), Plain(), "reward").status == "passed"
    failed = attempt(made(holds), Plain(scale=2), "reward")
    assert str(failed).splitlines() == [
        "FAILED  holds",
        "        expected  two",
        "        came      2",
        "        why       one is too few",
        "        cure      add one",
    ]
    skipped = attempt(made(holds), ByDesign(), "reward")
    assert (skipped.status, skipped.reason) == ("skipped", "by design, it need not")


def test_a_branch_may_say_more():
    def differs(plugin, world):
        fail("3", expected="four", cure="count")

    outcome = attempt(made(differs), Plain(), "reward")
    assert (outcome.expected, outcome.came, outcome.cure) == ("four", "3", "count")


def test_what_a_plugin_lacks_is_no_failure():
    def steps(plugin, world):
        raise NotApplicable("it has no steps")

    assert attempt(made(steps), Plain(), "reward").reason == "it has no steps"


@dataclass
class NoLoss:
    """Most of an algorithm, and all that an evaluator has."""

    optimizer: Any = None
    total_steps: int = 3

    def setup(self, run: Any) -> None: ...
    def collect(self, step: int) -> None: ...
    def evaluate(self, step: int) -> None: ...
    def save(self, folder: Path) -> None: ...


@dataclass
class Raises(Plain):
    def score(self, samples: Any) -> torch.Tensor:
        raise RuntimeError("no\nluck")


def test_what_it_raises_is_told_with_its_place():
    def scores(plugin, world):
        plugin.score(world.samples)

    line = Raises.score.__code__.co_firstlineno + 1
    outcome = attempt(made(scores), Raises(), "reward")
    assert (outcome.status, outcome.came) == ("failed", f"RuntimeError: no luck ({Path(__file__).name}, line {line})")


def process() -> dict[str, Any]:
    """What plugins share with everything else."""
    root = logging.getLogger()
    return {
        "here": str(Path.cwd()),
        "numbers": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "log": (root.level, root.handlers[:]),
        "torch": (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()),
    }


def test_a_plugin_is_a_copy_and_the_process_is_left_as_it_was(capsys):
    plugin, seen = Plain(), []
    before = process()

    def meddles(given, world):
        seen.append((given is plugin, str(Path.cwd()) == before["here"], list(world.folder.iterdir())))
        given.scale = 9.0
        print("noise")
        random.random(), np.random.random(), torch.rand(1)
        logging.getLogger().addHandler(logging.NullHandler())
        torch.set_grad_enabled(False), torch.set_num_threads(2), torch.set_default_dtype(torch.float64)

    assert attempt(made(meddles), plugin, "reward").status == "passed"
    assert seen == [(False, True, [])]  # in the folder it is asked in, for settings may name files
    assert (plugin.scale, capsys.readouterr().out) == (1.0, "")
    assert process() == before


def test_an_error_that_many_checks_meet_is_told_once():
    def scores(plugin, world):
        plugin.score(world.samples)

    def scores_again(plugin, world):
        plugin.score(world.samples)

    first, second = run_checks(Raises(), "reward", checks=[made(scores), made(scores_again)])
    assert (first.status, second.status) == ("failed", "failed")
    assert len(str(first).splitlines()) == 5
    assert str(second) == "FAILED  scores_again: by the error that scores met, which has to be mended first"


def test_the_kind_is_that_of_the_entry_point_or_of_the_methods():
    from rlhf_plugins.algorithm.sft import SFT
    from rlhf_plugins.tracker.jsonl import Jsonl

    assert [kind_of(plugin) for plugin in (SFT(), Jsonl(), Plain())] == ["algorithm", "tracker", "reward"]
    assert kind_of(NoLoss()) == "algorithm"  # the checks then say what it lacks
    with pytest.raises(UserError, match=r"cannot tell its kind \(a \w+ needs .*kind="):
        kind_of(SimpleNamespace())
    with pytest.raises(UserError, match="kind: got 'rewards', expected"):
        checks_of("rewards")


def test_every_check_is_told_well():
    from rlhf_core.contracts import CONTRACTS

    for kind in CONTRACTS:
        checks = checks_of(kind)
        names = [check.name for check in checks]
        assert len(set(names)) == len(names) > 10
        for check in checks:
            for text in (check.expected, check.why, check.cure):
                assert text and "\n" not in text and "|" not in text and not text.endswith("."), (check.name, text)
            assert check.body.__doc__, check.name


CHECKED = parametrize_with_checks(ByDesign(), Plain(scale=float("nan")))


def test_pytest_has_a_case_a_check():
    name, cases = CHECKED.args
    names = [check.name for check in checks_of("reward")]
    assert name == "check"
    assert [case.id for case in cases] == [f"{cls}-{check}" for cls in ("ByDesign", "Plain") for check in names]
    (nan,) = [case for case in cases if case.id.startswith("Plain-") and "finite" in case.id]
    with pytest.raises(pytest.fail.Exception, match=r"(?s)FAILED  .*finite.*came      .*nan.*cure"):
        nan.values[0]()


def test_run_checks_is_the_same_without_pytest():
    outcomes = {outcome.check.name: outcome.status for outcome in run_checks(Plain())}
    assert list(outcomes) == [check.name for check in checks_of("reward")]
    assert "failed" not in {name: status for name, status in outcomes.items() if name != "is_found"}.values(), outcomes


def test_the_command(capsys):
    assert main(["check", "reward=length", "reward.minimum=2", "reward.maximum=4"]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "reward=length"
    assert [line.split()[1].rstrip(":") for line in lines] == [check.name for check in checks_of("reward")]
    assert last.endswith(" skipped") and ", 0 failed, " in last


def test_the_command_as_data_and_one_check(capsys):
    name = checks_of("tracker")[-1].name
    assert main(["check", "tracker=[jsonl]", "reward=length", "reward.minimum=0", "--json", "--only", name]) == 1
    assert f"--only {name}: no such check" in capsys.readouterr().err  # a reward has no such check
    assert main(["check", "tracker=[jsonl]", "--json", f"--only={name}"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["plugin"], row["check"], row["status"]) == ("tracker=jsonl", name, "passed")
    assert {"why", "expected", "came", "cure", "reason"} < set(row)


def test_files_are_found_from_where_one_stands(tmp_path, monkeypatch, capsys):
    rows = [{"prompt": f"say of {word}", "response": f"it is {word}"} for word in ("a b c d e f g h " * 8).split()]
    rows = [{**row, "prompt": f"{row['prompt']} and {number}"} for number, row in enumerate(rows)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = [
        "data=jsonl",
        "data.prompt_files=[mine.jsonl]",
        "data.demonstration_files=[mine.jsonl]",
        "data.test_fraction=0.3",
    ]
    assert main(["check", *words]) == 0, capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_a_setting_that_the_plugin_refuses_fails_with_its_own_words(capsys):
    assert main(["check", "reward=length", "reward.minimum=0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("expected 0 < minimum" in line for line in lines) == 1
    assert lines[-1].startswith("failed: gives_one_score_a_response, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "check: nothing names no plugin; say it as KIND=NAME, e.g. reward=sentiment"),
        (["rewrd=length"], "check: rewrd=length names no plugin; .* Did you mean reward?"),
        (["reward=lenght"], "reward=lenght: no such reward; .* Did you mean length?"),
        (["reward=length", "reward.minimun=3"], "reward.minimun: no such key in length. Did you mean minimum?"),
        (["reward=null"], "reward=null: there is nothing to check"),
        (["reward=length", "--fast"], "--fast: no such option of rlhf check; there are --only CHECK and --json"),
        (["benchmark=eagr"], "benchmark=eagr: no such benchmark; .* Did you mean eager?"),
    ],
)
def test_mistakes(words, message, capsys):
    import re

    assert main(["check", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch("error: " + message.replace("?", r"\?").replace(".* Did", ".* ?Did"), line), line
