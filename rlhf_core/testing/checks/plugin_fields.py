"""What is asked of every plugin: its fields are its configuration."""

import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from ...failure import flat, told
from ...settings import REQUIRED
from ..check import Checks, NotApplicable, fail, fail_if
from ..clean import report_on
from ..world import World
from .random_state import RandomState

CHECKS = check = Checks()

SCALARS = (bool, int, float, str)


@check(
    "fields annotated with types that can be checked: int, float, bool, str, an Enum, lists and dicts of these",
    why="a value from the command line is checked against the annotation: reward.scale=fast has to be refused at once",
    cure="annotate each field with its type; Any is for what holds another plugin; runtime objects are made in setup()",
)
def has_typed_fields(plugin: Any, world: World) -> None:
    """As OmegaConf, which makes the configuration of a class, understands them."""
    cls = _dataclass(plugin)
    try:
        OmegaConf.structured(cls)
    except Exception as error:  # of OmegaConf, or of a default_factory
        fail(f"{cls.__qualname__}: {flat(error)}")
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        if hints[field.name] in (Any, object) and _is_value(default := _default(field)):
            fail(f"{field.name}: Any = {default!r}", cure=f"annotate it: {field.name}: {_hint(default)}")
    for name, value in unannotated(cls):
        cure = f"annotate it, {name}: {_hint(value)} = {value!r}, or as ClassVar[{_hint(value)}] if it is a constant"
        fail(f"{name} = {value!r} has no annotation, so it is no field and cannot be set", cure=cure)


@check(
    f'a default for every field, or "{REQUIRED}" where a value has to be given',
    why="a plugin is chosen by its name alone; what it lacks then is named, which needs a default that says so",
    cure=f'give the field a default, or write = "{REQUIRED}" where a value has to be given',
)
def has_defaults(plugin: Any, world: World) -> None:
    """Each field that is asked for; one that is not (``init=False``) may not be asked for either."""
    cls = _dataclass(plugin)
    for field in fields(cls):
        absent = field.default is MISSING and field.default_factory is MISSING
        if absent and not field.init:
            fail(
                f"{field.name} is a field with init=False and no default: composing a run asks for it all the same",
                cure=f"drop the annotation of {field.name} from the class and set self.{field.name} in setup()",
            )
        fail_if(absent, f"{field.name} has none")


@check(
    "two instances that share nothing that can change",
    why="a run may hold two of a kind, say the reward and a judge: what one changes the other would see",
    cure="have default_factory make a new value each time: field(default_factory=lambda: [...])",
)
def shares_nothing(plugin: Any, world: World) -> None:
    """What the factories of the fields make."""
    for field in fields(_dataclass(plugin)):
        if field.default_factory is not MISSING:
            first, second = field.default_factory(), field.default_factory()
            parts = {id(part) for part in _mutable(first)}
            shared = [part for part in _mutable(second) if id(part) in parts]
        else:
            shared = list(_mutable(field.default))
        fail_if(bool(shared), f"all instances share the default of {field.name}, {str(shared[:1])[1:-1]}")


@check(
    "the same fields after a round trip through YAML",
    why="a run is recorded in config.yaml, and resumed from what was typed: it has to come back as it was",
    cure="leave the fields as they were given; what follows from them belongs into other attributes, in setup()",
)
def round_trips_through_yaml(plugin: Any, world: World) -> None:
    """Instance → OmegaConf → YAML → OmegaConf, typed → instance."""
    cls = _dataclass(plugin)
    _structured_or_skip(cls)
    try:
        given = OmegaConf.structured(plugin)
        text = OmegaConf.to_yaml(given)
        back = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(text))
        if not OmegaConf.missing_keys(back):
            back = OmegaConf.structured(OmegaConf.to_object(back))
    except Exception as error:  # of OmegaConf, YAML or __post_init__
        fail(told(error))
    before: Any = OmegaConf.to_container(given)
    after: Any = OmegaConf.to_container(back)
    for name, value in before.items():
        fail_if(repr(value) != repr(after.get(name)), f"{name} was {value!r} and came back as {after.get(name)!r}")


@check(
    "made from its settings alone: it opens no file and makes no model",
    why="rlhf makes the object to check a configuration, many times in a sweep, before seeds and a device are set",
    cure="move it from __init__ or __post_init__ into setup(), or, for a policy, into the method that makes the model",
)
def is_light_until_it_is_set_up(plugin: Any, world: World) -> None:
    """Files are watched in a clean process; what is there is looked at here."""
    opened = report_on(plugin).opened
    fail_if(bool(opened), f"making one opened {', '.join(opened[:3])}")
    for name, value in vars(plugin).items() if hasattr(plugin, "__dict__") else ():
        fail_if(isinstance(value, nn.Module | Tensor), f"{name} is a {type(value).__name__} before setup() was called")


@check(
    "making one leaves the random numbers alone",
    why="all plugins of a run draw from the same generators: seeding them here makes every run draw the same",
    cure="draw nothing and seed nothing in __init__ or __post_init__; run.generator() gives numbers of one's own",
)
def is_made_without_random_numbers(plugin: Any, world: World) -> None:
    """Those of Python, NumPy and torch."""
    cls = _dataclass(plugin)
    given = {field.name: getattr(plugin, field.name) for field in fields(cls) if field.init}
    before = RandomState.now()
    with suppress(Exception):  # that is another check's
        cls(**given)
    before.refuse_change("making one")


def unannotated(cls: type) -> Iterator[tuple[str, Any]]:
    """What looks like a field of the class but for the annotation."""
    known = _OF_CONTRACTS | set(vars(cls).get("__annotations__", {}))
    known |= {name for base in cls.__mro__[1:] for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    for name, value in vars(cls).items():
        private = name.startswith(("_", "rlhf_")) or name.upper() == name
        if not private and name not in known and isinstance(value, (*SCALARS, list, dict)):
            yield name, value


_OF_CONTRACTS = {"temperature", "top_p", "draws_per_response", "total_steps", "ops", "kind", "grouped"}
"""What contracts read of a class; a constant does for them."""


def _dataclass(plugin: Any) -> type:
    if not is_dataclass(type(plugin)):
        raise NotApplicable("it is no dataclass")
    return type(plugin)


def _structured_or_skip(cls: type) -> None:
    try:
        OmegaConf.structured(cls)
    except Exception as error:
        raise NotApplicable("its fields have no types that can be checked") from error


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is_value(default: Any) -> bool:
    if isinstance(default, dict):
        return bool(default) and all(isinstance(value, SCALARS) for value in default.values())
    return isinstance(default, (*SCALARS, list)) and default != REQUIRED


def _hint(value: Any) -> str:
    inside = sorted({type(part).__name__ for part in (value.values() if isinstance(value, dict) else value)}
                    if isinstance(value, dict | list) else ())  # fmt: skip
    if isinstance(value, dict):
        return f"dict[str, {' | '.join(inside) or 'float'}]"
    return f"list[{' | '.join(inside) or 'str'}]" if isinstance(value, list) else type(value).__name__


def _mutable(value: Any) -> Iterator[Any]:
    """Lists, dicts, sets and instances of dataclasses in a value, itself included."""
    if isinstance(value, list | dict | set):
        yield value
    if is_dataclass(value) and not isinstance(value, type):
        parameters: Any = vars(type(value)).get("__dataclass_params__")
        if parameters is None or not parameters.frozen:
            yield value
        inside = [getattr(value, field.name, None) for field in fields(value)]
    else:
        inside = list(value.values()) if isinstance(value, dict) else []
        inside += list(value) if isinstance(value, list | tuple | set) else []
    for part in inside:
        yield from _mutable(part)
