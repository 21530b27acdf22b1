"""The implementations that are installed: plugins of the entry-point group ``rlhf.benchmark``."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .. import plugins
from ..contracts.benchmark import Benchmark
from ..errors import UserError
from ..failure import flat

KINDS = ("baseline", "ours", "peer")
EAGER = "eager"
"""What the others are compared with."""
COPIES = "copies"
"""What sharing a prompt is compared with: the same kernel, on a copy of the prompt for each that shares it."""

FIRST = (EAGER, "vectorised", "compile", "definition", COPIES)
"""The order of the baselines that come with the package."""


@dataclass(frozen=True)
class Implementation:
    """One of them; ``benchmark`` is None where the plugin is broken, and ``broken`` says why."""

    name: str
    benchmark: Benchmark | None
    broken: str = ""

    @property
    def kind(self) -> str:
        """Baseline, ours or peer; a third party that states nothing is a peer."""
        return str(getattr(self.benchmark, "kind", "peer"))

    @property
    def ops(self) -> tuple[str, ...]:
        """What it covers."""
        return tuple(self.benchmark.ops) if self.benchmark else ()

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot compute ``op`` here, or None."""
        if self.benchmark is None:
            return self.broken
        if op not in self.ops:
            return "does not cover this op"
        return self.benchmark.why_not(op, device, dtype)


def implementations() -> dict[str, Implementation]:
    """All of them by name: baselines, ours, peers."""
    found = [_load(name) for name in plugins.available("benchmark")]

    def place(one: Implementation) -> tuple[int, int, str]:
        known = FIRST.index(one.name) if one.name in FIRST else len(FIRST)
        return KINDS.index(one.kind) if one.kind in KINDS else len(KINDS), known, one.name

    return {one.name: one for one in sorted(found, key=place)}


def chosen(names: Iterable[str]) -> list[Implementation]:
    """Those of these names, in the usual order; all of them for no name.

    Raises:
        UserError: there is no such one, or it is broken.
    """
    there, wanted = implementations(), list(names)
    for name in wanted:
        if name not in there:
            listed = ", ".join(there) or "none installed"
            raise UserError(
                f"impl={name}: no such implementation; there are: {listed}{plugins.did_you_mean(name, there)}"
            )
        if there[name].broken:
            raise UserError(f"impl={name}: {there[name].broken}")
    return [one for name, one in there.items() if not wanted or name in wanted]


def _load(name: str) -> Implementation:
    try:
        return Implementation(name, plugins.load("benchmark", name)())
    except UserError as error:
        return Implementation(name, None, flat(error).removeprefix(f"benchmark={name}: "))
