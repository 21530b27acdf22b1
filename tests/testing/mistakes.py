"""What a deliberately wrong plugin is shown, and what has to come of it."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_core.testing import Check, Outcome, attempt

ALL = bool(os.environ.get("RLHF_ALL_CHECKS"))


def register(mistakes: dict[type, Any], told: Any) -> Callable[[type], type]:
    """A decorator that notes a wrong plugin, with what has to come of it."""

    def keep(cls: type) -> type:
        mistakes[cls] = told
        return cls

    return keep


def asked(checks: Sequence[Check], mistakes: Mapping[Any, Mapping[str, Any]], mistake: Any) -> list[Check]:
    """The checks that have to find it; of every third mistake, or with RLHF_ALL_CHECKS=1, all: all take minutes."""
    every = ALL or list(mistakes).index(mistake) % 3 == 0
    return [check for check in checks if every or check.name in mistakes[mistake]]


def outcomes(plugin: Any, kind: str, checks: Sequence[Check]) -> dict[str, Outcome]:
    """What comes of checks, by their names."""
    return {check.name: attempt(check, plugin, kind) for check in checks}


def failed(plugin: Any, kind: str, checks: Sequence[Check]) -> dict[str, Outcome]:
    """Those that fail."""
    found = outcomes(plugin, kind, checks)
    return {name: outcome for name, outcome in found.items() if outcome.status == "failed"}


def found_alone(found: Mapping[str, Outcome], expected: Mapping[str, str | None]) -> None:
    """Just the checks that are expected have failed, each with its telling words, in a line, and with a cure."""
    assert found.keys() == expected.keys(), [str(outcome) for outcome in found.values()]
    for name, words in expected.items():
        assert words is None or words in found[name].came
        assert found[name].cure and found[name].expected and "\n" not in found[name].came
