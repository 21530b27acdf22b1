"""A broken plugin harms nobody until it is chosen, and then says in one line whose fault it is."""

import json

import pytest

from rlhf_core.doctor import broken_plugins

CAUSES = {
    "broken": ("rlhf-broken 0.1", "rlhf_broken.py", "RuntimeError: no licence key found (line 3)"),
    "syntax": ("rlhf-broken 0.1", "rlhf_broken_syntax.py", "SyntaxError: expected ':'"),
    "gone": ("rlhf-broken 0.1", "rlhf_broken_gone", "ModuleNotFoundError: No module named 'rlhf_broken_gone'"),
    "needy": ("rlhf-broken 0.1", "rlhf_broken_needy.py", "No module named 'a_module_that_nobody_has' (line 6)"),
    "oldapi": ("rlhf-oldapi 0.1", "rlhf_oldapi.py", "asks for plugin API 0, this rlhf has 1"),
    "noapi": ("rlhf-oldapi 0.1", "rlhf_oldapi.py", "states no rlhf_api"),
    "plain": ("rlhf-oldapi 0.1", "rlhf_oldapi.py", "is no dataclass"),
    "forgot": ("rlhf-oldapi 0.1", "rlhf_oldapi.py", "decorate it with @dataclass"),
    "untyped": ("rlhf-oldapi 0.1", "rlhf_oldapi.py", "Unexpected type annotation: frozenset[int]"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_chosen(jobs, capsys, name):
    assert jobs.train(f"reward={name}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: reward={name}: ")
    for part in CAUSES[name]:
        assert part in line


def test_not_chosen(jobs):
    assert jobs.train("reward=thirdparty") == 0


def test_list_marks_what_it_can_see_without_importing(rlhf):
    rows = {row["name"]: row["problem"] for row in json.loads(rlhf("list", "reward", "--json").stdout)}
    assert rows["oldapi"] == "asks for plugin API 0, this rlhf has 1"
    assert rows["noapi"] == "states no rlhf_api"
    assert rows["plain"] == rows["forgot"] == "is no dataclass; decorate it with @dataclass"
    assert rows["gone"] == "there is no file for module rlhf_broken_gone"
    assert rows["syntax"] == "line 1: expected ':'"
    assert rows["needy"] == "line 6: imports a_module_that_nobody_has, which is not installed"
    assert rows["thirdparty"] == ""
    assert "BROKEN: states no rlhf_api" in rlhf("list", "reward").stdout


def test_doctor_tries_them_all(installed):
    found = broken_plugins()
    assert {f"reward={name}" for name in CAUSES} <= set(found)
    assert "reward=thirdparty" not in found
    assert "no licence key found" in found["reward=broken"]


def test_two_distributions_with_one_name(rlhf, site, clashing):
    both = (site, clashing)
    listed = {row["name"]: row["problem"] for row in json.loads(rlhf("list", "reward", "--json", path=both).stdout)}
    assert listed["thirdparty"] == "rlhf-clash and rlhf-good both register this name"
    assert listed["sentiment"] == "rlhf-core and rlhf-lookalike both register this name"
    for name, owners in (("thirdparty", "rlhf-clash and rlhf-good"), ("sentiment", "rlhf-core and rlhf-lookalike")):
        run = rlhf(
            "train", "policy=still", "algorithm=still", "data=still", "rollout=null", f"reward={name}", path=both
        )
        assert run.returncode == 1
        assert run.stderr == f"error: reward={name}: {owners} both register this name; uninstall one of them\n"
