"""A plugin whose requirement is not installed."""

from dataclasses import dataclass
from typing import ClassVar

import a_module_that_nobody_has


@dataclass
class Needy:
    """Asks for more than is there."""

    rlhf_api: ClassVar[int] = 1
    key: str = a_module_that_nobody_has.KEY
