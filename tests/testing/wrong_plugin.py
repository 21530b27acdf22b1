"""Plugins with one fault each, of what is asked of every plugin; rewards, where nothing else is said."""

import random
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .mistakes import register

WRONG: dict[type, tuple[set[str], str]] = {}
"""Plugin → the checks that find it, and words of the message of the first."""


def found_by(*checks: str, telling: str) -> Callable[[type], type]:
    return register(WRONG, (set(checks), telling))


class Zero:
    """What all of them do beside their fault."""

    def setup(self, run: Any) -> None: ...

    def score(self, samples: Any) -> Tensor:
        return torch.zeros(len(samples))


@found_by("is_a_dataclass", telling="Plain is a plain class")
class Plain(Zero):
    """Nobody said @dataclass."""

    rlhf_api: ClassVar[int] = 1

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale


@dataclass
class Decorated(Zero):
    """Right, and a base of others."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0


@found_by("is_a_dataclass", telling="adds bias to a dataclass")
class DecoratorForgotten(Decorated):
    """Adds a field that is none."""

    bias: float = 0.0


@found_by("states_the_api", telling="states none")
@dataclass
class WithoutApi(Zero):
    """Says not what it was written for."""


@found_by("states_the_api", telling="rlhf_api is a field")
@dataclass
class ApiAsField(Zero):
    """Forgot ClassVar."""

    rlhf_api: int = 1


@found_by("states_the_api", telling="rlhf_api = 2, this rlhf has 1")
@dataclass
class OtherApi(Zero):
    """Of another time."""

    rlhf_api: ClassVar[int] = 2


@found_by("states_the_api", telling="rlhf_api = '1'")
@dataclass
class ApiAsText(Zero):
    """A number in quotes."""

    rlhf_api: ClassVar[Any] = "1"


@found_by("is_documented", telling="@dataclass makes up: Undocumented(")
@dataclass
class Undocumented(Zero):
    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0


@found_by("is_documented", telling="BaseDocumented(")
@dataclass
class BaseDocumented(Decorated):
    rlhf_api: ClassVar[int] = 1


@found_by("is_documented", telling="has no docstring")
@dataclass
class Blank(Zero):
    """ """

    rlhf_api: ClassVar[int] = 1


@found_by("has_its_contract", telling="no score")
@dataclass
class NoScore:
    """Calls it otherwise."""

    rlhf_api: ClassVar[int] = 1

    def setup(self, run: Any) -> None: ...

    def __call__(self, samples: Any) -> Tensor:
        return torch.zeros(len(samples))


@found_by("has_its_contract", telling="score is 1.0")
@dataclass
class ScoreIsAField:
    """Has a field of the name of a method."""

    rlhf_api: ClassVar[int] = 1
    score: float = 1.0

    def setup(self, run: Any) -> None: ...


@found_by("has_its_contract", telling="temperature is a method")
@dataclass
class TemperatureIsAMethod:
    """A rollout engine; others read ``rollout.temperature`` as a number."""

    rlhf_api: ClassVar[int] = 1
    top_p: float = 1.0

    def temperature(self) -> float:
        return 1.0

    def generate(self, model: Any, prompts: Any, generator: Any) -> Any: ...


@found_by("has_its_contract", telling="total_steps is a method")
@dataclass
class StepsIsAMethod:
    """An algorithm that forgot @property."""

    rlhf_api: ClassVar[int] = 1
    optimizer: float = 0.0

    def setup(self, run: Any) -> Any: ...
    def total_steps(self) -> int:
        return 1

    def collect(self, step: int) -> Any: ...
    def loss(self, microbatch: Any) -> Any: ...
    def save(self, folder: Path) -> None: ...


@found_by("has_its_contract", telling="no loss")
@dataclass
class NoLoss:
    """An algorithm without an objective; what it has would do for an evaluator."""

    rlhf_api: ClassVar[int] = 1
    optimizer: float = 0.0
    total_steps: ClassVar[int] = 1

    def setup(self, run: Any) -> Any: ...
    def collect(self, step: int) -> Any: ...
    def evaluate(self, step: int) -> dict[str, float]: ...
    def save(self, folder: Path) -> None: ...


@found_by("takes_the_arguments_of_its_contract", telling="score(prompts, responses): missing a required argument")
@dataclass
class AsksForMore(Zero):
    """The signature of another library."""

    rlhf_api: ClassVar[int] = 1

    def score(self, prompts: Any, responses: Any) -> Tensor:
        return torch.zeros(len(responses))


@found_by("takes_the_arguments_of_its_contract", telling="setup(): too many positional arguments")
@dataclass
class TakesNoRun(Zero):
    """It needs no run, so it takes none."""

    rlhf_api: ClassVar[int] = 1

    def setup(self) -> None: ...


@found_by("takes_the_arguments_of_its_contract", telling="score(*, samples")
@dataclass
class ByNameAlone(Zero):
    """Arguments come by their place."""

    rlhf_api: ClassVar[int] = 1

    def score(self, *, samples: Any) -> Tensor:
        return torch.zeros(len(samples))


@found_by("takes_the_arguments_of_its_contract", telling="async score")
@dataclass
class Async(Zero):
    """Asks a server."""

    rlhf_api: ClassVar[int] = 1

    async def score(self, samples: Any) -> Tensor:
        return torch.zeros(len(samples))


@found_by("takes_the_arguments_of_its_contract", telling="language_model(): too many positional arguments")
@dataclass
class PolicyWithoutData:
    """A policy that needs no data."""

    rlhf_api: ClassVar[int] = 1

    def language_model(self) -> Any: ...
    def scalar_model(self, path: str | None = None) -> Any: ...


@found_by("takes_the_arguments_of_its_contract", telling="scalar_model(path): missing a required argument: 'path'")
@dataclass
class PathHasNoDefault:
    """A policy whose critic always has a checkpoint."""

    rlhf_api: ClassVar[int] = 1

    def language_model(self, data: Any) -> Any: ...
    def scalar_model(self, path: str) -> Any: ...


@found_by("has_typed_fields", telling="scale: Any = 2.0")
@dataclass
class AnyNumber(Zero):
    """Any number, or anything."""

    rlhf_api: ClassVar[int] = 1
    scale: Any = 2.0


@found_by("has_typed_fields", telling="words: Any = ['good']")
@dataclass
class AnyList(Zero):
    """Anything at all."""

    rlhf_api: ClassVar[int] = 1
    words: Any = field(default_factory=lambda: ["good"])


@found_by("has_typed_fields", telling="Literal[up, down]")
@dataclass
class Choice(Zero):
    """Types that OmegaConf does not know."""

    rlhf_api: ClassVar[int] = 1
    way: Literal["up", "down"] = "up"


@found_by("has_typed_fields", telling="Tensor")
@dataclass
class TensorField(Zero):
    """State among the fields."""

    rlhf_api: ClassVar[int] = 1
    mean: Tensor | None = None


@found_by("has_typed_fields", telling="Callable")
@dataclass
class FunctionField(Zero):
    """A function as a setting."""

    rlhf_api: ClassVar[int] = 1
    measure: Callable[[str], float] = len


@found_by("has_typed_fields", telling="'0.5' of type 'float' could not be converted to Integer")
@dataclass
class OtherDefault(Zero):
    """A default of another type."""

    rlhf_api: ClassVar[int] = 1
    limit: int = 0.5  # type: ignore[assignment]


@found_by("has_typed_fields", telling="scale = 2.0 has no annotation")
@dataclass
class Unannotated(Zero):
    """No field, so ``reward.scale=3`` is refused."""

    rlhf_api: ClassVar[int] = 1
    scale = 2.0


@found_by("has_defaults", telling="path has none")
@dataclass
class NoDefault(Zero):
    """A field that has to be given, without "???"."""

    rlhf_api: ClassVar[int] = 1
    path: str


@found_by("has_defaults", telling="half is a field with init=False and no default")
@dataclass
class Derived(Zero):
    """A field that follows from another."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0
    half: float = field(init=False)

    def __post_init__(self) -> None:
        self.half = self.scale / 2


WORDS = ["good", "fine"]


@found_by("shares_nothing", telling="default of words, ['good', 'fine']")
@dataclass
class SharedList(Zero):
    """One list for all."""

    rlhf_api: ClassVar[int] = 1
    words: list[str] = field(default_factory=lambda: WORDS)


SHARED = Decorated()


@found_by("shares_nothing", telling="default of parts, Decorated(scale=1.0)")
@dataclass
class SharedInside(Zero):
    """A new dict each time, with one plugin in all."""

    rlhf_api: ClassVar[int] = 1
    parts: dict[str, Any] = field(default_factory=lambda: {"part": SHARED})


@found_by("round_trips_through_yaml", telling="scale was 4.0 and came back as 8.0")
@dataclass
class Doubles(Zero):
    """What is made again is another."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 2.0

    def __post_init__(self) -> None:
        self.scale *= 2


@found_by("round_trips_through_yaml", telling="words was ['a', 'b', 'end'] and came back as ['a', 'b', 'end', 'end']")
@dataclass
class Appends(Zero):
    """Adds to a list it was given."""

    rlhf_api: ClassVar[int] = 1
    words: list[str] = field(default_factory=lambda: ["a", "b"])

    def __post_init__(self) -> None:
        self.words.append("end")


@found_by("round_trips_through_yaml", telling="words")
@dataclass
class Replaces(Zero):
    """A list of words becomes a set in the field."""

    rlhf_api: ClassVar[int] = 1
    words: list[str] = field(default_factory=lambda: ["a"])

    def __post_init__(self) -> None:
        self.words = set(self.words)  # type: ignore[assignment]


@found_by("is_light_until_it_is_set_up", telling="model is a Linear")
@dataclass
class MakesAModel(Zero):
    """Before the seeds are set, and the device is known."""

    rlhf_api: ClassVar[int] = 1
    size: int = 2

    def __post_init__(self) -> None:
        with torch.random.fork_rng():
            self.model = nn.Linear(self.size, 1)


@found_by("is_light_until_it_is_set_up", telling="wrong_plugin.py.words")
@dataclass
class ReadsAFile(Zero):
    """When a configuration is merely looked at."""

    rlhf_api: ClassVar[int] = 1

    def __post_init__(self) -> None:
        try:
            self.words = Path(__file__ + ".words").read_text().split()
        except OSError:
            self.words = []


@found_by("is_made_without_random_numbers", telling="the state of torch")
@dataclass
class Seeds(Zero):
    """Makes all runs the same."""

    rlhf_api: ClassVar[int] = 1
    seed: int = 1

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)


@found_by("is_made_without_random_numbers", telling="random and numpy.random")
@dataclass
class Draws(Zero):
    """A name for itself."""

    rlhf_api: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.name = f"{random.random()} {np.random.rand()}"


@found_by("reaches_another_process", telling="lambda")
@dataclass
class KeepsALambda(Zero):
    """What cannot be sent elsewhere."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.scaled = lambda value: value * self.scale


def local() -> type:
    @dataclass
    class Local(Zero):
        """Of a function."""

        rlhf_api: ClassVar[int] = 1

    return Local


found_by("reaches_another_process", "is_listed_as_it_is", telling="local.<locals>.Local")(local())

Made = make_dataclass("Made", [("scale", float, 1.0)], bases=(Zero,), namespace={"rlhf_api": 1, "__doc__": "Made."})
Made.__module__ = __name__
found_by("is_listed_as_it_is", telling="has no class Made")(Made)


def with_settings(cls: type) -> type:
    """Fields that no source shows."""
    cls.__annotations__ = {**cls.__annotations__, "hidden": float}
    cls.hidden = 1.0  # type: ignore[attr-defined]
    return cls


@found_by("is_listed_as_it_is", telling="not shown: hidden")
@dataclass
@with_settings
class Grown(Zero):
    """Has a field of a decorator."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0


API = 1


@found_by("is_listed_as_it_is", telling="states no rlhf_api")
@dataclass
class ApiByName(Zero):
    """rlhf list would have to run it."""

    rlhf_api: ClassVar[int] = API


@found_by("is_listed_as_it_is", telling="its documentation is not shown: 'Has 1 word.'")
@dataclass
class DocComputed(Zero):
    __doc__ = f"Has {API} word."

    rlhf_api: ClassVar[int] = 1


@dataclass
class Everything(Zero):
    """Right: what a configuration may have."""

    rlhf_api: ClassVar[int] = 1
    LIMIT = 3
    LEVELS: ClassVar[tuple[str, ...]] = ("a",)
    _: KW_ONLY
    path: str = "???"
    other: str | None = None
    size: int | str = 3
    sizes: tuple[int, ...] = (1, 2)
    folder: Path = Path("x")
    table: dict[str, float] = field(default_factory=lambda: {"a": 1})
    part: Any = None
    needed: Any = "???"
    parts: dict[str, Any] = field(default_factory=lambda: {"one": Decorated()})
    number: float = 1
    nothing: float = float("nan")
    state: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.other = (self.other or "none").lower()
        self._cache: dict[str, float] = {}

    @property
    def double(self) -> float:
        return 2 * self.number

    def score(self, batch: Any, *rest: Any, verbose: bool = False) -> Tensor:
        return torch.zeros(len(batch))


@dataclass(frozen=True, slots=True)
class Frozen:
    """Right: cannot be changed."""

    rlhf_api: ClassVar[int] = 1
    scale: float = 1.0

    def setup(self, run: Any) -> None: ...

    @staticmethod
    def score(samples: Any) -> Tensor:
        return torch.zeros(len(samples))


class Renamed(Decorated):
    """Right: adds no field to a dataclass."""


RIGHT = [
    Decorated(), Everything(), Everything(path="a", needed=Decorated(), part=Decorated(2.0), other="B"), Frozen(),
    Renamed(scale=2),
]  # fmt: skip
