"""``rlhf``: one word, then what that word understands.

Help, ``list`` and ``info`` read metadata and source text; the others import what is heavy, and only once they run.
"""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr

from rlhf_core import __version__, explain, listing
from rlhf_core.complete import candidates, hydra_line
from rlhf_core.errors import UserError
from rlhf_core.failure import report
from rlhf_core.help import COMMANDS, help_text
from rlhf_core.plugins import did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``rlhf``; those of this process if None.

    Returns:
        The exit code: 0, or 1 for bad input, 2 for a fault of the program, 130 for Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        return _run(words)
    except BrokenPipeError:  # `rlhf list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def _run(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(help_text(next(iter(rest), "")))
        return 0
    if command == "--version":
        print(f"rlhf {__version__}")
        return 0
    if command in ("-sc", "--shell-completion"):
        return _shell_completion(rest)
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise UserError(f"{command}: no such command; there are: {', '.join(COMMANDS)}{near}")
    if "-h" in rest or "--help" in rest:
        print(help_text(command))
        return 0
    return _RUNNERS[command](rest)


def _train(rest: list[str]) -> int:
    from rlhf_core.hydra_glue import launch  # Hydra takes 0.2 s to import

    return launch("train", rest)


def _pipeline(rest: list[str]) -> int:
    from rlhf_core.hydra_glue import launch  # Hydra takes 0.2 s to import

    return launch("pipeline", rest)


def _report(rest: list[str]) -> int:
    from rlhf_core.report import main as write_report  # plotting libraries are slow to import

    return write_report(rest)


def _chat(rest: list[str]) -> int:
    from rlhf_core.chat import main as chat  # torch is slow to import

    return chat(rest)


def _bench(rest: list[str]) -> int:
    from rlhf_core.bench import main as bench  # measuring needs torch

    return bench(rest)


def _conformance(rest: list[str]) -> int:
    from rlhf_core.conformance import main as conformance  # its golden vectors are tensors

    return conformance(rest)


def _new(rest: list[str]) -> int:
    from rlhf_core.new import main as new  # it reads every contract, a seventh of what `rlhf list` takes

    return new(rest)


def _check(rest: list[str]) -> int:
    from rlhf_core.testing.command import main as check  # tries plugins out, which takes torch

    return check(rest)


def _doctor(rest: list[str]) -> int:
    from rlhf_core import doctor  # imports every plugin, and torch with them

    return doctor.main(rest)


_RUNNERS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "pipeline": _pipeline,
    "list": listing.list_plugins,
    "info": listing.show_plugin,
    "new": _new,
    "check": _check,
    "explain": explain.main,
    "report": _report,
    "chat": _chat,
    "bench": _bench,
    "conformance": _conformance,
    "doctor": _doctor,
}


def _shell_completion(rest: list[str]) -> int:
    """Answer ``rlhf -sc query=bash`` ourselves where we can; keys of chosen plugins are Hydra's to know."""
    from rlhf_core.hydra_glue import launch  # Hydra takes 0.2 s to import

    action, _, shell = next(iter(rest), "").partition("=")
    line = os.environ.get("COMP_LINE", "")
    if action != "query" or not line:
        return launch("train", ["-sc", *rest])
    found = candidates(line)
    if found is not None:
        print(("\n" if shell == "fish" else " ").join(found))
        return 0
    command, os.environ["COMP_LINE"] = hydra_line(line)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # a message would land in the user's prompt
        launch(command, ["-sc", *rest])
    return 0


if __name__ == "__main__":
    sys.exit(main())
