"""What each kind of plugin is: one Protocol a file."""

from typing import Any

from ..errors import UserError
from .algorithm import OPTIONAL, Algorithm
from .benchmark import Benchmark
from .data import Data
from .evaluator import Evaluator
from .policy import Policy
from .reward import Reward
from .rollout import RolloutEngine
from .tracker import Tracker

CONTRACTS: dict[str, type] = {
    "policy": Policy,
    "reward": Reward,
    "algorithm": Algorithm,
    "data": Data,
    "rollout": RolloutEngine,
    "evaluator": Evaluator,
    "tracker": Tracker,
    "benchmark": Benchmark,
}
"""Kind → contract."""


def needed(kind: str) -> list[str]:
    """The attributes and methods that a plugin of this kind has to have."""
    contract = CONTRACTS[kind]
    names = [*vars(contract).get("__annotations__", {}), *vars(contract)]
    return [name for name in names if not name.startswith("_") and (kind != "algorithm" or name not in OPTIONAL)]


def missing(kind: str, plugin: Any) -> list[str]:
    """Those that it lacks."""
    return [name for name in needed(kind) if not hasattr(type(plugin), name) and not hasattr(plugin, name)]


def refuse_incomplete(kind: str, plugin: Any) -> None:
    """Say which method a plugin lacks before it is missed in the middle of a run.

    Raises:
        UserError: it lacks one.
    """
    if lacking := missing(kind, plugin):
        name = f"{type(plugin).__module__}.{type(plugin).__qualname__}"
        raise UserError(
            f"{kind}: {name} has no {' and no '.join(lacking)}; a plugin of this kind needs "
            f"{', '.join(needed(kind))} (rlhf_core.contracts.{kind})"
        )
