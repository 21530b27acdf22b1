"""One check: what a plugin has to do, why, and what to do where it does not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ..failure import told

if TYPE_CHECKING:
    from .world import World

Body = Callable[[Any, "World"], None]
"""Looks at a plugin that was not set up yet, a copy of its own, in a small world; raises ``CheckFailed``."""


class CheckFailed(AssertionError):
    """A plugin does something else than its contract says.

    ``came`` says what; ``expected`` and ``cure``, where given, replace what the check itself says.
    """

    def __init__(self, came: str, expected: str = "", cure: str = "") -> None:
        """One line each, with the numbers."""
        super().__init__(came)
        self.came, self.expected, self.cure = came, expected, cure


class NotApplicable(Exception):
    """The plugin does not have what the check is about; the message says what."""


@dataclass(frozen=True)
class Check:
    """What is asked of every plugin of a kind.

    Attributes:
        name: what holds where it passes.
        expected: the same in a sentence.
        why: what goes wrong in a run where it does not hold.
        cure: what an author does about it.
        body: looks at one plugin.
    """

    name: str
    expected: str
    why: str
    cure: str
    body: Body


@dataclass(frozen=True)
class Outcome:
    """What came of one check of one plugin.

    ``reason`` says why it was skipped, ``same_as`` which check had met the error before that it failed by.
    """

    check: Check
    status: Literal["passed", "failed", "skipped"]
    expected: str = ""
    came: str = ""
    cure: str = ""
    reason: str = ""
    same_as: str = ""

    def __str__(self) -> str:
        """A line, and where it failed four more."""
        if self.status != "failed":
            return f"{self.status:8}{self.check.name}{f': {self.reason}' if self.reason else ''}"
        if self.same_as:
            return f"FAILED  {self.check.name}: by the error that {self.same_as} met, which has to be mended first"
        told = {"expected": self.expected, "came": self.came, "why": self.check.why, "cure": self.cure}
        return "\n".join([f"FAILED  {self.check.name}", *(f"        {name:10}{text}" for name, text in told.items())])


class Checks(list[Check]):
    """The checks of one kind, in the order in which their functions are written."""

    def __call__(self, expected: str, *, why: str, cure: str) -> Callable[[Body], Body]:
        """Make a check of a function; its name is the function's."""

        def add(body: Body) -> Body:
            self.append(Check(body.__name__, expected, why, cure, body))
            return body

        return add


def fail(came: str, expected: str = "", cure: str = "") -> NoReturn:
    """The check fails."""
    raise CheckFailed(came, expected, cure)


@contextmanager
def naming(act: str) -> Iterator[None]:
    """The check fails where the plugin raises something in this; ``act`` says what it was asked."""
    try:
        yield
    except Exception as error:  # a stranger's code may raise anything at all
        fail(f"{act} raised {told(error)}")


def fail_if(wrong: bool, came: str, expected: str = "", cure: str = "") -> None:
    """The check fails where something is wrong."""
    if wrong:
        fail(came, expected, cure)
