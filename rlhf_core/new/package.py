"""The files of a plugin's package, from ``templates/``: real files with $names in them, in paths ``NAME``."""

import ast
from collections.abc import Iterator
from pathlib import Path
from string import Template

from ..errors import UserError
from .name import Name

TEMPLATES = Path(__file__).parent / "templates"
WHAT = {"algorithm": "An algorithm", "evaluator": "An evaluator", "data": "A data source"}
PARTS = {"data": ("package", "preset"), "benchmark": ("package",)}
"""Folders of templates beside the kind's own. Data need no examples, and a benchmark is no part of a configuration."""


def files(name: Name) -> dict[str, str]:
    """Path → content of every file, in the order in which one reads them.

    Raises:
        UserError: the class would have the name of something that its module uses.
    """
    words = {
        "name": name.module,
        "cls": name.cls,
        "distribution": name.distribution,
        "kind": name.kind,
        "what": WHAT.get(name.kind, f"A {name.kind}"),
    }
    found = {}
    for folder in (*PARTS.get(name.kind, ("package", "preset", "examples")), name.kind):
        for file in sorted((TEMPLATES / folder).rglob("*.txt")):
            path = file.relative_to(TEMPLATES / folder).as_posix().removesuffix(".txt")
            path = path.replace("NAME", name.module).replace("dot_", ".")
            found[path] = Template(file.read_text(encoding="utf-8")).substitute(words)
    if any(name.cls in _used(text, name.module) for path, text in found.items() if path.endswith(".py")):
        another = f"take e.g. my_{name.module}"
        raise UserError(f"{name.module}: its files need another {name.cls} than the class; {another}")
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def try_it(name: Name) -> str:
    """The command that shows the plugin at work."""
    if name.kind == "benchmark":
        return f"rlhf bench run op=ranking_loss impl=eager,{name.module}"
    return f"rlhf train experiment={name.module}"


def _used(source: str, own: str) -> Iterator[str]:
    """Names that a file imports from elsewhere or gives to constants."""
    for node in ast.parse(source).body:
        match node:
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == own:
                continue
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.Assign(targets=[ast.Name(id=found)]):
                yield found
