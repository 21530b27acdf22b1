"""Dependencies point one way: the core knows no plugin."""

import ast
from pathlib import Path

import pytest

import rlhf_core

CORE = Path(rlhf_core.__file__).parent
FILES = sorted(CORE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages a file imports, and every string in which one could be named for a later import."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names.add(node.value)
    return {name.partition(".")[0].partition(":")[0] for name in names}


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CORE)) for file in FILES])
def test_core_imports_no_plugin(file):
    assert imported(ast.parse(file.read_text(encoding="utf-8"))).isdisjoint({"rlhf_plugins", "plugins.policy"})


def test_the_test_would_see_one():
    for text in (
        "import rlhf_plugins.reward",
        "from rlhf_plugins import x",
        "import_module('rlhf_plugins.reward.sum')",
    ):
        assert "rlhf_plugins" in imported(ast.parse(text))
    assert len(FILES) > 20
