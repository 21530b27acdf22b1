"""What is asked of every plugin: what it is, that it has its contract; how it loads and what its fields are follow."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from ... import RLHF_API
from ...contracts import CONTRACTS, missing, needed
from ..check import Checks, fail, fail_if
from ..world import World
from . import plugin_fields, plugin_loading

CHECKS: Checks = Checks()
check = CHECKS

API = f"rlhf_api: ClassVar[int] = {RLHF_API}"


@check(
    "a class decorated with @dataclass",
    why="its fields are its configuration: without them nothing can be set on the command line, and it is not loaded",
    cure="decorate the class with @dataclass, also where it derives from one and adds fields",
)
def is_a_dataclass(plugin: Any, world: World) -> None:
    """As loading a plugin asks it."""
    cls = type(plugin)
    fail_if(not is_dataclass(cls), f"{cls.__qualname__} is a plain class")
    own = plugin_loading.undecorated(cls)
    fail_if(bool(own), f"{cls.__qualname__} adds {', '.join(own)} to a dataclass without being one")


@check(
    f"{API} in the class",
    why="the number tells a plugin written for another rlhf from one that is broken; without it none is loaded",
    cure=f"write {API} into the class",
)
def states_the_api(plugin: Any, world: World) -> None:
    """A number of the class, and no setting."""
    cls = type(plugin)
    if is_dataclass(cls) and "rlhf_api" in [field.name for field in fields(cls)]:
        fail("rlhf_api is a field, so a setting that anybody can change", cure=f"annotate it as ClassVar: {API}")
    api = getattr(cls, "rlhf_api", None)
    fail_if(api is None, f"{cls.__qualname__} states none")
    fail_if(type(api) is not int or api != RLHF_API, f"rlhf_api = {api!r}, this rlhf has {RLHF_API}")


@check(
    "a docstring whose first line says what it is",
    why="the first line is what rlhf list shows, the rest is what rlhf info shows: there is no other documentation",
    cure='begin the class with a docstring: """What it does, in one line."""',
)
def is_documented(plugin: Any, world: World) -> None:
    """The text that ``@dataclass`` makes up does not count, nor does that of a base."""
    cls = type(plugin)
    doc = inspect.cleandoc(vars(cls).get("__doc__") or "")
    fail_if(not doc.strip(), f"{cls.__qualname__} has no docstring")
    made_up = is_dataclass(cls) and doc.startswith(f"{cls.__name__}(")
    fail_if(made_up, f"{cls.__qualname__} has only what @dataclass makes up: {doc[:60]}")


@check(
    "all attributes and methods of its contract",
    why="what is missing is noticed when it is first used: at the end of a run, perhaps",
    cure="add it; rlhf_core/contracts/ says, one file a kind, what each is",
)
def has_its_contract(plugin: Any, world: World) -> None:
    """By name, and as what it is there: a method, or a value."""
    kind = world.kind
    lacking = missing(kind, plugin)
    wanted = f"a plugin of kind {kind} has {', '.join(needed(kind))}"
    fail_if(bool(lacking), f"no {' and no '.join(lacking)}", expected=wanted)
    for name, asked in members(kind):
        found = inspect.getattr_static(plugin, name, asked)
        method = inspect.isroutine(found) or isinstance(found, staticmethod | classmethod)
        if method and not inspect.isfunction(asked):
            fail(f"{name} is a method", f"{name} is read as a value", f"make {name} a field or a @property")
        if inspect.isfunction(asked) and not callable(getattr(plugin, name, asked)):
            fail(f"{name} is {getattr(plugin, name)!r}", f"{name} is a method", f"rename the field {name}")


@check(
    "methods that take what their contract hands them",
    why="a method that asks for other arguments fails when it is first called, which may be hours into a run",
    cure="give it the contract's parameters, in that order; whatever else it asks for needs a default",
)
def takes_the_arguments_of_its_contract(plugin: Any, world: World) -> None:
    """They are handed over by their places, so their names are free."""
    for name, asked in members(world.kind):
        method = getattr(plugin, name, None) if inspect.isfunction(asked) else None
        if method is not None and callable(method):
            _refuse_other_arguments(name, asked, method)


def _refuse_other_arguments(name: str, asked: Callable[..., Any], method: Callable[..., Any]) -> None:
    wanted = list(inspect.signature(asked).parameters.values())[1:]
    required = [parameter for parameter in wanted if parameter.default is parameter.empty]
    try:
        signature = inspect.signature(method)
    except ValueError:  # of a function that is not Python's
        return
    names = [parameter.name for parameter in wanted]
    for count in {len(wanted), len(required)}:
        called = f"{name}({', '.join(names[:count])})"
        try:
            signature.bind(*[None] * count)
        except TypeError as error:
            bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
            asks = signature.replace(parameters=bare, return_annotation=signature.empty)
            fail(f"{name}{asks}: {error}", expected=f"it can be called as {called}")
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        fail(f"async {name}", f"{name}() gives its result at once", "write it without async; it may run a loop inside")


def members(kind: str) -> Iterator[tuple[str, Any]]:
    """What the contract of a kind has, methods that may be left out too; None stands for a mere annotation."""
    contract = CONTRACTS[kind]
    yield from ((name, None) for name in vars(contract).get("__annotations__", {}))
    yield from ((name, member) for name, member in vars(contract).items() if not name.startswith("_"))


CHECKS += plugin_loading.CHECKS + plugin_fields.CHECKS
