"""What an explanation of a logged number consists of."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One logged number, or a few that mean the same of different things.

    Attributes:
        names: what it is logged as; in them ``NAME`` stands for any name, ``N`` for any number.
        formula: how it is computed.
        unit: what it is measured in.
        over: what it is a mean over, or a maximum, or a count of.
        healthy: what it does in a run that goes well.
        rising: what it means when it rises.
        falling: what it means when it falls; empty where that is the opposite of rising.
        action: what to do where it is not healthy.
    """

    names: tuple[str, ...]
    formula: str
    unit: str
    over: str
    healthy: str
    rising: str
    action: str
    falling: str = ""

    @property
    def title(self) -> str:
        """All its names."""
        return ", ".join(self.names)

    def explains(self, name: str) -> bool:
        """Whether a logged name is one of these, or of their pattern."""
        return any(_pattern(own).fullmatch(name) for own in self.names)


@dataclass(frozen=True)
class Group:
    """Metrics of one subject, and who logs them."""

    title: str
    logged: str
    metrics: tuple[Metric, ...]


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"\b(NAME)\b|(?<=_)(N)(?=/)", name)
    return re.compile("".join({"NAME": ".+", "N": r"\d+"}.get(part, re.escape(part)) for part in parts if part))
