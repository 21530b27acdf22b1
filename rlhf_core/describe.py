"""What a plugin says about itself, read from its source: nothing is imported, so it costs milliseconds.

A field's documentation is the string after it, or the comment behind it. Base classes are followed into the files
they are imported from.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from rlhf_core import RLHF_API
from rlhf_core.plugins import PluginInfo, importable, module_file


@dataclass(frozen=True)
class FieldDoc:
    """One configuration key."""

    name: str
    """dotted where it belongs to a dataclass inside the plugin (``optimizer.lr``)"""
    type: str
    default: str | None
    """as written in the source; None where a value has to be given"""
    doc: str


@dataclass(frozen=True)
class Description:
    """A class as its source shows it."""

    file: Path | None = None
    line: int = 0
    doc: str = ""
    api: int | None = None
    problem: str = ""
    """why it cannot be used; empty where nothing is wrong"""
    classes: tuple[tuple[str, ast.ClassDef], ...] = ()
    """the class behind its bases, each with its module"""

    @cached_property
    def fields(self) -> tuple[FieldDoc, ...]:
        """Its configuration; read when it is asked for, which `rlhf list` does not."""
        return _collect(self.classes)

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.doc.partition("\n")[0]


def describe(info: PluginInfo) -> Description:
    """Read a plugin's class; what is wrong with it is in ``problem``, nothing is raised."""
    found = describe_class(info.module, info.attribute)
    if info.clashes:
        problem = f"{' and '.join((info.distribution, *info.clashes))} both register this name"
    elif found.problem:
        problem = found.problem
    elif found.api is None:
        problem = "states no rlhf_api"
    else:
        problem = "" if found.api == RLHF_API else f"asks for plugin API {found.api}, this rlhf has {RLHF_API}"
    return replace(found, problem=problem)


def describe_class(module: str, name: str) -> Description:
    """Read one class by its module's dotted name."""
    file = module_file(module)
    if file is None:
        return Description(problem=f"there is no file for module {module}")
    try:
        found = _find_class(module, name, ())
    except SyntaxError as error:
        return Description(file, problem=f"line {error.lineno}: {error.msg}")
    except (OSError, UnicodeDecodeError) as error:
        return Description(file, problem=f"cannot be read: {error}")
    if found is None:
        return Description(file, problem=f"has no class {name}")
    owner, node = found[-1]
    stated = [api for _, cls in found if (api := _api(cls)) is not None]
    problem = "" if _is_dataclass(node, bases=len(found) - 1) else "is no dataclass; decorate it with @dataclass"
    problem = problem or _absent(_source(module).tree)
    doc = ast.get_docstring(node) or ""
    api = stated[-1] if stated else None
    return Description(_source(owner).file, node.lineno, doc, api, problem, tuple(found))


@dataclass(frozen=True)
class _Source:
    file: Path
    tree: ast.Module
    lines: list[str]


@cache
def _source(module: str) -> _Source:
    file = module_file(module)
    if file is None:
        raise FileNotFoundError(module)
    text = file.read_text(encoding="utf-8")
    return _Source(file, ast.parse(text, str(file)), text.splitlines())


def _collect(chain: Iterable[tuple[str, ast.ClassDef]]) -> tuple[FieldDoc, ...]:
    """Fields of a class with its bases; later ones win."""
    fields: dict[str, tuple[FieldDoc, ...]] = {}
    for owner, node in chain:
        for field in _fields(node, _source(owner).lines):
            fields[field.name] = _spread(owner, field)
    return tuple(field for group in fields.values() for field in group)


def _spread(owner: str, field: FieldDoc) -> tuple[FieldDoc, ...]:
    """The field, or the fields of the dataclass it holds, with the values it is made with."""
    default = field.default or ""
    if not default.endswith(")"):  # it makes nothing
        return (field,)
    made = ast.parse(default, mode="eval").body
    if not isinstance(made, ast.Call) or not isinstance(made.func, ast.Name):
        return (field,)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in made.keywords}
    inner = _collect(_find_class(owner, made.func.id, ()) or [])
    parts = (replace(part, default=given.get(part.name, part.default)) for part in inner)
    return tuple(replace(part, name=f"{field.name}.{part.name}") for part in parts) or (field,)


def _find_class(module: str, name: str, seen: tuple[str, ...]) -> list[tuple[str, ast.ClassDef]] | None:
    """The class and its bases, bases first, each with its module; None where there is no such class."""
    place = f"{module}:{name}"
    if place in seen or module_file(module) is None:
        return None
    source = _source(module)
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            chain: list[tuple[str, ast.ClassDef]] = []
            for base in reversed(node.bases):
                chain += _base(source, module, base, (*seen, place)) or []
            return [*chain, (module, node)]
    origin = _imported(source, module, name)
    return _find_class(*origin, (*seen, place)) if origin else None


def _base(source: _Source, module: str, base: ast.expr, seen: tuple[str, ...]) -> list[tuple[str, ast.ClassDef]] | None:
    if isinstance(base, ast.Subscript):
        base = base.value
    if isinstance(base, ast.Name):
        return _find_class(module, base.id, seen)
    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
        origin = _imported(source, module, base.value.id)
        return _find_class(".".join(filter(None, origin)), base.attr, seen) if origin else None
    return None


def _imported(source: _Source, module: str, name: str) -> tuple[str, str] | None:
    """``(module, name)`` that a name of this module was imported from."""
    package = module if source.file.name == "__init__.py" else module.rpartition(".")[0]
    for node in source.tree.body:
        if isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, (parent, node.module)))
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            if name in names:
                return origin, names[name]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return alias.name, ""
    return None


def _absent(tree: ast.Module) -> str:
    """What a module imports on its top level that is not installed; empty where all is there."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            top = name.partition(".")[0]
            if not importable(top):
                return f"line {node.lineno}: imports {top}, which is not installed"
    return ""


def _is_dataclass(node: ast.ClassDef, bases: int) -> bool:
    """Decorated, or adding no field to a base that is."""
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return True
    own = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    return bases > 0 and all("ClassVar" in ast.unparse(statement.annotation) for statement in own)


def _fields(node: ast.ClassDef, lines: list[str]) -> list[FieldDoc]:
    found = []
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        hint = ast.unparse(statement.annotation)
        if "ClassVar" in hint or "KW_ONLY" in hint or _not_asked_for(statement.value):
            continue
        doc = _string(after) or _comment(statement, lines)
        found.append(FieldDoc(statement.target.id, hint.strip("'\""), _default(statement.value), doc))
    return found


def _string(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def _comment(statement: ast.AnnAssign, lines: list[str]) -> str:
    rest = lines[(statement.end_lineno or statement.lineno) - 1].encode()[statement.end_col_offset or 0 :]
    text = rest.decode().strip()
    return text.removeprefix("#").strip() if text.startswith("#") and "type:" not in text else ""


def _default(value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        factory = given.get("default_factory")
        if factory is None:
            return _default(given.get("default"))
        return _made_by(factory)
    if value is None:
        return None
    text = ast.unparse(value)
    return None if text in ("'???'", "MISSING", "REQUIRED") else text


def _made_by(factory: ast.expr) -> str:
    if isinstance(factory, ast.Lambda):
        return ast.unparse(factory.body)
    name = ast.unparse(factory)
    return {"list": "[]", "dict": "{}"}.get(name, f"{name}()")


def _not_asked_for(value: ast.expr | None) -> bool:
    """``field(init=False)``: state, not configuration."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return any(keyword.arg == "init" and ast.unparse(keyword.value) == "False" for keyword in keywords)


def _api(node: ast.ClassDef) -> int | None:
    for statement in node.body:
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == "rlhf_api" for target in targets):
            value = getattr(statement, "value", None)
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, int) else None
    return None
