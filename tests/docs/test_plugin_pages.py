"""docs/plugins and docs/compatibility.md say what is so: contracts, checks, lines, names that can be imported."""

import importlib
import re
from pathlib import Path

import pytest

import rlhf_core
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


def written_for_authors():
    """What our examples and the packages that ``rlhf new`` writes are made of."""
    core = Path(rlhf_core.__file__).parent
    return [*(DOCS / "examples").rglob("*.py"), *(core / "new" / "templates").rglob("*.py.txt")]


@pytest.mark.parametrize("file", written_for_authors(), ids=lambda file: "/".join(file.parts[-3:]))
def test_authors_are_shown_what_is_promised(file):
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    for module, names in re.findall(r"^ *from (rlhf_core[\w.]*) import (\(.*?\)|.*?)$", file.read_text(), re.M | re.S):
        whole = f"`{module}`," in page or f"`{module}` " in page or f"`{module.rpartition('.')[0]}.*`" in page
        row = next((line for line in page.splitlines() if f"`{module}`:" in line), "")
        for name in re.findall(r"\w+", names):
            assert whole or f"`{module}.{name}`" in page or f"`{name}`" in row, f"{module}.{name}"


def test_the_run_has_what_setup_is_promised():
    from rlhf_core.run import Run

    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| the run that")]
    names = re.findall(r"`(\w+)(?:\(\))?`", row.partition("|")[2].partition("|")[0].partition("handed:")[2])
    assert len(names) > 8
    for name in names:
        assert name in Run.__dataclass_fields__ or hasattr(Run, name), name
