"""What is asked of every plugin: how it is listed, imported, and sent to other processes."""

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

from ... import RLHF_API
from ..check import Checks, NotApplicable, fail, fail_if
from ..clean import Report, registered_as, report_on
from ..world import World

CHECKS = check = Checks()


@check(
    "a module that can be imported by its name, alone, in a clean process",
    why="a plugin is imported when it is chosen, before anything else of a run; one that needs more is never loaded",
    cure="have the module import what it uses, and nothing that is not installed with it",
)
def imports_alone(plugin: Any, world: World) -> None:
    """Nothing of the tests, or of other plugins, was imported before."""
    error = report_on(plugin).error
    cure = "move the class into a module of its own" if type(plugin).__module__ == "__main__" else ""
    fail_if(bool(error), f"{type(plugin).__module__}: {error}", cure=cure)


@check(
    "importing it prints nothing",
    why="output of a run is one line a step, and rlhf list --json is read by programs: stray lines break both",
    cure="remove the print, or log it from setup(); a warning of its own code is to be mended",
)
def imports_in_silence(plugin: Any, world: World) -> None:
    """Neither on stdout nor on stderr; what imported libraries print does not count."""
    output = _imported(plugin).output.strip()
    fail_if(bool(output), f"it printed {output[:200]!r}")


@check(
    "importing it changes nothing of the process",
    why="rlhf imports plugins to look at them: random numbers, precision and logging of every run would change",
    cure="move what acts into setup(), and there, too, change only what is the plugin's own",
)
def imports_without_side_effects(plugin: Any, world: World) -> None:
    """Random numbers, torch's settings, environment, logging, warnings, signals, files, threads."""
    changes = _imported(plugin).changes
    fail_if(bool(changes), "; ".join(changes[:3]))


@check(
    "a class that is found by its module and name, so that a copy can be sent to another process",
    why="sweeps and data-parallel runs send plugins to processes that they start",
    cure="define the class at the top level of its module, under its own name; make what cannot be pickled in setup()",
)
def reaches_another_process(plugin: Any, world: World) -> None:
    """Pickled here, before it is set up, and unpickled there."""
    fail_if("<locals>" in type(plugin).__qualname__, f"{type(plugin).__qualname__} is defined inside a function")
    lost = _imported(plugin).lost
    fail_if(bool(lost), lost)


@check(
    "rlhf list and rlhf info import nothing",
    why="they are typed to find out what there is, and complete words while one types: they have to answer at once",
    cure="import nothing when the interpreter starts (.pth files, sitecustomize); list by an ordinary module",
)
def is_listed_without_importing(plugin: Any, world: World) -> None:
    """Not the module, nor torch, transformers, numpy or Hydra."""
    imported = report_on(plugin).listing.imported
    fail_if(bool(imported), f"{', '.join(imported)} were imported")


@check(
    "rlhf list and rlhf info show what the class is",
    why="both read the source without importing it: what is made while it runs is not seen, so nobody can find it",
    cure="write the class out: @dataclass, its fields and its docstring, at the top level of a module that has a file",
)
def is_listed_as_it_is(plugin: Any, world: World) -> None:
    """What source and class say of documentation, API number and fields."""
    cls = type(plugin)
    if not is_dataclass(cls) or undecorated(cls):
        raise NotApplicable("it is no dataclass")
    shown, (module, name) = report_on(plugin).listing, registered_as(cls)
    if cls.__module__ == "__main__":
        raise NotApplicable("it is defined in __main__")
    fail_if(bool(shown.problem), f"{module}:{name} is shown as BROKEN: {shown.problem}")
    if getattr(cls, "rlhf_api", None) == RLHF_API != shown.api:
        cure = f"write the number itself: rlhf_api: ClassVar[int] = {RLHF_API}"
        fail(f"{module}:{name} is shown as BROKEN: states no rlhf_api", cure=cure)
    has = [field.name for field in fields(cls) if field.init]
    shows = list(dict.fromkeys(name.partition(".")[0] for name in shown.fields))
    for words, left in (("not shown", set(has) - set(shows)), ("shown, but not there", set(shows) - set(has))):
        fail_if(bool(left), f"{words}: {', '.join(sorted(left))}", expected="the fields shown are those of the class")
    own = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("\n")[0]
    if not shown.doc and not own.startswith(f"{cls.__name__}("):
        fail_if(bool(own), f"its documentation is not shown: {own!r}", cure="write the docstring as a plain string")


def undecorated(cls: type) -> list[str]:
    """The fields that a class adds to a dataclass without being one."""
    if "__dataclass_params__" in vars(cls):
        return []
    hints = vars(cls).get("__annotations__", {})
    return [name for name, hint in hints.items() if "ClassVar" not in str(hint)]


def _imported(plugin: Any) -> Report:
    report = report_on(plugin)
    if report.error:
        raise NotApplicable("it cannot be imported")
    return report
