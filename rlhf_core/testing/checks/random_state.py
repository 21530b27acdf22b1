"""The states of the global generators, to see whether a plugin changed them."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..check import fail_if
from ..process import seed


@dataclass(frozen=True)
class RandomState:
    """Of Python, numpy and torch at one moment."""

    states: dict[str, Any]

    @staticmethod
    def unusual() -> "RandomState":
        """After seeding with a number that nobody else seeds with: what seeds anew changes the states."""
        seed(987_654_321)
        return RandomState.now()

    @staticmethod
    def now() -> "RandomState":
        """As they are."""
        return RandomState(
            {"random": random.getstate(), "numpy.random": _numpy(), "torch": torch.get_rng_state().tolist()}
        )

    def refuse_change(self, act: str) -> None:
        """Fail where some are others by now; ``act`` is what was done since."""
        changed = self.changed()
        fail_if(bool(changed), f"{act} changed the state of {changed}")

    def changed(self) -> str:
        """The names of those that are others by now."""
        there = RandomState.now().states
        return " and ".join(name for name, state in self.states.items() if there[name] != state)


def _numpy() -> Any:
    name, keys, *rest = np.random.get_state(legacy=True)
    return name, tuple(keys), *rest
