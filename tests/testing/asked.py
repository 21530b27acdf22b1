"""Which checks a deliberately wrong plugin is shown: each against all takes minutes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_core.testing import Check

ALL = bool(os.environ.get("RLHF_ALL_CHECKS"))


def asked(checks: Sequence[Check], mistakes: Mapping[Any, Mapping[str, Any]], mistake: Any) -> list[Check]:
    """Those that have to find it; of every third mistake, or with RLHF_ALL_CHECKS=1, all others too."""
    every = ALL or list(mistakes).index(mistake) % 3 == 0
    return [check for check in checks if every or check.name in mistakes[mistake]]
