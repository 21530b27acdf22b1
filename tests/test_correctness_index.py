"""docs/correctness.md has all its numbers, and every test that it names is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "correctness.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE)))
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]


@cache
def functions_of(path: Path) -> frozenset[str]:
    """The test functions of a file, those in classes too; read, not run."""
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def test_all_numbers_are_there_in_order():
    numbers = [int(found[1]) for section in SECTIONS if (found := re.match(r"(\d+)\. ", section))]
    assert numbers == list(range(1, 30))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_each_section_names_a_test(section):
    assert re.search(r"`tests/[\w/]+\.py::test_\w+`", section)
    if section[0].isdigit():
        assert "\nElsewhere: " in section and "\nHere: " in section


@pytest.mark.parametrize("named", NAMED)
def test_it_exists(named):
    path, name = named.split("::")
    assert (ROOT / path).is_file(), f"there is no {path}"
    assert name in functions_of(ROOT / path), f"{path} has no {name}"


def test_nothing_named_is_spelled_another_way():
    assert len(re.findall(r"`tests/[^`]*`", PAGE)) == len(re.findall(r"`tests/[\w/]+\.py(?:::\w+)?`", PAGE))


def test_the_check_can_fail():
    assert "test_the_check_can_fail" in functions_of(Path(__file__))
    assert "test_that_nobody_wrote" not in functions_of(Path(__file__))
