"""The table of checks in each kind's page: ``python -m rlhf_core.testing.page docs/plugins`` writes them anew."""

import sys
from pathlib import Path

from ..contracts import CONTRACTS
from .checks import checks_of

HEADING = "## What is checked"


def section(kind: str) -> str:
    """The end of a kind's page."""
    rows = [f"| `{check.name}` | {check.expected} | {check.why} |" for check in checks_of(kind)]
    text = f"`rlhf check {kind}=NAME`, or `parametrize_with_checks` in a test, asks for this:"
    return "\n".join([HEADING, "", text, "", "| check | expected | else |", "|---|---|---|", *rows, ""])


def renewed(page: str, kind: str) -> str:
    """The page with its last section as it has to be."""
    return page.partition(HEADING)[0] + section(kind)


if __name__ == "__main__":
    for kind in CONTRACTS:
        file = Path(sys.argv[1]) / f"{kind}.md"
        file.write_text(renewed(file.read_text(encoding="utf-8"), kind), encoding="utf-8")
