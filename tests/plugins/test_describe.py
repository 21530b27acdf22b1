"""What is read from source equals what importing would show."""

import sys
from dataclasses import MISSING, fields, is_dataclass

import pytest

from rlhf_core import describe as module
from rlhf_core.describe import describe, describe_class
from rlhf_core.plugins import KINDS, available, load
from rlhf_core.settings import PipelineSettings, TrainSettings

BASE = '''
from dataclasses import dataclass, field
from typing import ClassVar

@dataclass
class Inner:
    rate: float = 0.1
    """a rate"""
    names: list[str] = field(default_factory=list)

@dataclass
class Base:
    rlhf_api: ClassVar[int] = 1
    first: int = 1  # behind it
    second: str = "a"
'''
CHILD = '''
"""A module."""
from dataclasses import dataclass, field
import pkg_described.base as base
from .base import Inner
from . import base as again

@dataclass
class Child(base.Base):
    """First line.

    More.
    """

    second: str = "b # not a comment"
    needed: int = "???"
    must: float = field()
    inner: Inner = field(default_factory=lambda: Inner(rate=0.5))
    plain: Inner = field(default_factory=Inner)
    made: list[str] = field(default_factory=lambda: ["x"])
    """a list
    in two lines"""
    state: int = field(init=False, default=0)

@dataclass
class Grandchild(Child, again.Base):
    third: dict[str, int] = field(default_factory=dict)

class Forgot(base.Base):
    more: int = 1

class Same(base.Base):
    """Adds nothing."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "pkg_described"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .child import Child as Renamed\n")
    (folder / "base.py").write_text(BASE)
    (folder / "child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for cached in (module._source, module.module_file, sys.modules["rlhf_core.plugins"]._spec):
        cached.cache_clear()


def test_fields(package):
    found = describe_class("pkg_described.child", "Child")
    assert {field.name: field.default for field in found.fields} == {
        "first": "1",
        "second": "'b # not a comment'",
        "needed": None,
        "must": None,
        "inner.rate": "0.5",
        "inner.names": "[]",
        "plain.rate": "0.1",
        "plain.names": "[]",
        "made": "['x']",
    }
    docs = {field.name: field.doc for field in found.fields}
    assert (docs["first"], docs["second"], docs["made"]) == ("behind it", "", "a list in two lines")
    assert docs["inner.rate"] == "a rate"
    assert (found.summary, found.api, found.problem) == ("First line.", 1, "")


def test_bases_and_other_names(package):
    assert [f.name for f in describe_class("pkg_described.child", "Grandchild").fields][-1] == "third"
    assert describe_class("pkg_described", "Renamed").summary == "First line."
    assert describe_class("pkg_described.child", "Same").problem == ""
    assert describe_class("pkg_described.child", "Forgot").problem == "is no dataclass; decorate it with @dataclass"
    assert describe_class("pkg_described.child", "Nope").problem == "has no class Nope"
    assert describe_class("pkg_described.nope", "X").problem == "there is no file for module pkg_described.nope"


def test_nothing_is_imported(package):
    describe_class("pkg_described.child", "Grandchild")
    assert not any(name.startswith("pkg_described") for name in sys.modules)


def flat(cls: type, prefix: str = "") -> set[str]:
    """The oracle: names of a dataclass's fields by importing it, those of dataclasses inside included."""
    names: set[str] = set()
    for field in fields(cls):
        inner = field.default_factory() if field.default_factory is not MISSING else None
        if is_dataclass(inner):
            names |= flat(type(inner), f"{prefix}{field.name}.")
        elif field.init:
            names.add(prefix + field.name)
    return names


ALL = [(info.kind, info.name) for kind in KINDS for info in available(kind).values() if "rlhf_plugins" in info.value]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_first_party_plugins_as_imported(kind, name):
    found = describe(available(kind)[name])
    assert found.problem == ""
    assert {field.name for field in found.fields} == flat(load(kind, name))
    assert found.summary


@pytest.mark.parametrize("cls", [TrainSettings, PipelineSettings])
def test_settings_as_imported(cls):
    found = describe_class("rlhf_core.settings", cls.__name__)
    assert {field.name for field in found.fields} == flat(cls)
    assert all(field.doc for field in found.fields)
