"""docs/plugins and docs/compatibility.md say what is so: contracts, checks, lines, names that can be imported."""

import importlib
import re

import pytest

from rlhf_core.contracts import CONTRACTS
from rlhf_core.contracts.algorithm import OPTIONAL
from rlhf_core.testing.page import renewed

from .conftest import DOCS


@pytest.mark.parametrize("kind", CONTRACTS)
def test_checks_are_listed(kind):
    page = (DOCS / "plugins" / f"{kind}.md").read_text(encoding="utf-8")
    assert page == renewed(page, kind), "python -m rlhf_core.testing.page docs/plugins"


@pytest.mark.parametrize("kind", CONTRACTS)
def test_the_whole_contract_is_named(kind):
    page = (DOCS / "plugins" / f"{kind}.md").read_text(encoding="utf-8")
    contract = CONTRACTS[kind]
    names = {*vars(contract).get("__annotations__", {}), *vars(contract), *(OPTIONAL if kind == "algorithm" else ())}
    for name in names:
        assert name.startswith("_") or f"`{name}" in page, name
    assert f"rlhf new {kind} NAME" in page


def test_the_lines_of_the_example_are_counted():
    lines = (DOCS / "examples" / "reinforce_baseline" / "reinforce_baseline.py").read_text().splitlines()
    assert f"whole, in {len(lines)} lines" in (DOCS / "plugins" / "algorithm.md").read_text()
    assert len(lines) < 60


def test_what_is_promised_is_there():
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| (.*`rlhf_core\..*) \|$", page, re.MULTILINE)
    found = 0
    for row in rows:
        owner = None
        for name in re.findall(r"`(\w[\w.]*)(?:\.\*)?`", row):
            owner, found = promised(name, owner), found + 1
    assert found > 25


def promised(name, owner):
    """The module a name is, or the one in which later names of its row are looked for."""
    if not name.startswith("rlhf_core"):
        assert hasattr(owner, name), f"{owner.__name__} has no {name}"
        return owner
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        owner = importlib.import_module(module)
        assert hasattr(owner, attribute), name
        return owner


def test_the_run_has_what_setup_is_promised():
    from rlhf_core.run import Run

    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| the run that")]
    names = re.findall(r"`(\w+)(?:\(\))?`", row.partition("|")[2].partition("|")[0].partition("handed:")[2])
    assert len(names) > 8
    for name in names:
        assert name in Run.__dataclass_fields__ or hasattr(Run, name), name
