"""Plugins that do not keep the contract."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class OldApi:
    """Written for an older plugin API."""

    rlhf_api: ClassVar[int] = 0


@dataclass
class NoApi:
    """Does not say which plugin API it was written for."""

    scale: float = 1.0


class Plain:
    """Is no dataclass."""

    rlhf_api: ClassVar[int] = 1


@dataclass
class Fine:
    """A dataclass."""

    rlhf_api: ClassVar[int] = 1


class Forgot(Fine):
    """Adds a field and forgets @dataclass."""

    scale: float = 1.0


@dataclass
class Untyped:
    """Has a field no configuration can hold."""

    rlhf_api: ClassVar[int] = 1
    when: frozenset[int] = frozenset()
