"""The least that a configuration needs: a policy, an algorithm and data that do nothing."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class StillPolicy:
    """A policy that is never loaded."""

    rlhf_api: ClassVar[int] = 1
    path: str | None = None
    width: int = 8


@dataclass
class StillAlgorithm:
    """An algorithm that takes no step."""

    rlhf_api: ClassVar[int] = 1
    kl_coef: float = 0.05
    """nats"""
    steps: int = 3


@dataclass
class StillData:
    """Data from a file that has to be named."""

    rlhf_api: ClassVar[int] = 1
    file: str = "???"


@dataclass
class Memory:
    """Keeps metrics in memory."""

    rlhf_api: ClassVar[int] = 1
    size: int = 100


@dataclass
class Echo:
    """Prints metrics."""

    rlhf_api: ClassVar[int] = 1
    prefix: str = ""
