"""``rlhf bench``: compare the kernels with eager PyTorch, and with whatever else is installed.

``run.py`` measures: ``ops/`` says what an op's inputs are, plugins compute it (``contracts/benchmark.py``), ``gate.py``
lets in what computes the same, ``timing.py`` times what got in, ``results.py`` keeps the rows.
"""

from collections.abc import Callable
from importlib import import_module

from ..complete import BENCH as COMMANDS
from ..errors import UserError
from ..plugins import did_you_mean


def main(argv: list[str]) -> int:
    """``rlhf bench COMMAND …``; the exit code."""
    if not argv or argv[0] not in COMMANDS:
        came = argv[0] if argv else "nothing"
        raise UserError(f"bench: expected one of {', '.join(COMMANDS)}, got {came}{did_you_mean(came, COMMANDS)}")
    # By name: report and compare need no torch, and torch takes seconds.
    module = {"list": "listing"}.get(argv[0], argv[0])
    try:
        run: Callable[[list[str]], int] = import_module(f"{__name__}.{module}").main
    except ModuleNotFoundError as error:  # a GPU machine with torch and little else; all but step work there
        raise UserError(f"bench {argv[0]}: needs {error.name}, which is not installed here") from error
    return run(argv[1:])
