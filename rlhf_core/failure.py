"""One line on stderr for whatever went wrong, and the exit code that goes with it."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from rlhf_core.errors import UserError

USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 1, 2, 130


def report(error: BaseException, again: str = "", known: str = "") -> int:
    """Print ``error`` as one line on stderr, or whole where ``RLHF_TRACEBACK=1`` asks for it.

    Args:
        error: what was raised.
        again: the command that goes on from here, for Ctrl-C and a full disk.
        known: what the error says in our words, where the caller knows better.

    Returns:
        The exit code: 1 for bad input or a full disk, 2 for a fault of the program, 130 for Ctrl-C.
    """
    text, code = explain(error, again, known)
    if wants_traceback() and code != INTERRUPTED:
        traceback.print_exception(error)
    print(text if code == INTERRUPTED else f"error: {text}", file=sys.stderr, flush=True)
    return code


def explain(error: BaseException, again: str = "", known: str = "") -> tuple[str, int]:
    """The line and the exit code; see :func:`report`."""
    if isinstance(error, KeyboardInterrupt):
        return f"stopped; go on with: {again}" if again else "stopped", INTERRUPTED
    for link in chain(error):
        if isinstance(link, UserError):
            return flat(link), USER_ERROR
        if isinstance(link, OSError) and link.errno == errno.ENOSPC:
            then = f"go on with: {again}" if again else "try again"
            where = link.filename or "the run folder"
            return f"disk full: {where} could not be written; free space and {then}", USER_ERROR
    if known:
        return known, USER_ERROR
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", USER_ERROR
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; lower trainer.microbatch_tokens, or the batch of the algorithm", USER_ERROR
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = f"internal error: {told(error)}{where}"
    return f"{text}; RLHF_TRACEBACK=1 shows all", INTERNAL_ERROR


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return "1" in (os.environ.get("RLHF_TRACEBACK"), os.environ.get("HYDRA_FULL_ERROR"))


def resume_command(command: str, folder: Path | None) -> str:
    """The command that continues the run in ``folder``; empty where nothing was written yet."""
    if folder is None or not (folder / "overrides.txt").exists():
        return ""
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"rlhf {command} resume={shown}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def flat(error: object) -> str:
    """Its text on one line."""
    return " ".join(str(error).split())


def told(error: BaseException) -> str:
    """What it is, and its text, on one line."""
    return f"{type(error).__name__}: {flat(error)}"


def line_in(file: Path | str | None, error: BaseException) -> int | None:
    """The last line of a file that the error passed through; None where it did not."""
    frames = traceback.extract_tb(error.__traceback__) if file else ()
    return next((frame.lineno for frame in reversed(frames) if Path(frame.filename) == Path(file or "")), None)
