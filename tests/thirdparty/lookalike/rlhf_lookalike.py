"""A plugin whose name another distribution registers too."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Sentiment:
    """Shares its name."""

    rlhf_api: ClassVar[int] = 1
