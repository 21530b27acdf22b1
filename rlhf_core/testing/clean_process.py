"""What runs in a clean process: it looks at plugins before, while and after they are imported.

Started by ``clean.py`` as a script, by its path: as a module of its package it would come with torch. It reads JSON on
stdin and writes JSON as the last line on stdout. Each plugin is imported in a child of its own, forked once torch is
there: importing torch anew for each would take seconds.
"""

import base64
import dataclasses
import json
import logging
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import IO, Any

HEAVY = ("numpy", "torch", "transformers", "hydra", "omegaconf")
"""What listing plugins may not import."""

PRELOADED = ("numpy", "torch", "transformers.modeling_utils", "transformers.models.auto", "hydra", "rich.progress")
"""What the children have imported before."""


class Files(MetaPathFinder):
    """Finds modules that no folder of ``sys.path`` has under their name, by their files."""

    def __init__(self, files: dict[str, str]) -> None:
        """``files`` by name of the module."""
        self.files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """One of the files."""
        file = self.files.get(fullname)
        return spec_from_file_location(fullname, file) if file else None


def main() -> None:
    """Answer what is asked on stdin."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    sys.meta_path.append(Files(asked["files"]))
    listings = [listing(*plugin["listed"]) for plugin in asked["plugins"]]
    for name in PRELOADED:
        import_module(name)
    reports = [alone(plugin) | {"listing": listed} for plugin, listed in zip(asked["plugins"], listings, strict=True)]
    print("\n" + json.dumps(reports), flush=True)


def listing(module: str, name: str) -> dict[str, Any]:
    """What ``rlhf list`` and ``rlhf info`` say of a class, and what of weight that has imported."""
    from rlhf_core.describe import describe_class  # not before sys.path is the caller's

    found = describe_class(module, name)
    imported = sorted({*HEAVY, module} & set(sys.modules))
    fields = [field.name for field in found.fields]
    return {"problem": found.problem, "api": found.api, "doc": found.doc, "fields": fields, "imported": imported}


def alone(plugin: dict[str, Any]) -> dict[str, Any]:
    """Import one plugin; what the libraries do that it imports is not its own doing, and left out."""
    report = in_child(look, plugin, ())
    if report["foreign"] and (report["changes"] or report["output"]):
        again = in_child(look, plugin, report["foreign"])
        report |= {key: again[key] for key in ("changes", "output")}
    return report


def in_child(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function gives in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            result = json.dumps(function(*arguments))
            with os.fdopen(writing, "w") as pipe:
                pipe.write(result)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = {"error": f"importing it ended the process, with exit code {code}"}
    return NOTHING | (json.loads(text) if text else ended)


NOTHING: dict[str, Any] = {"error": "", "output": "", "changes": [], "foreign": [], "lost": "", "opened": []}


def look(plugin: dict[str, Any], before: Sequence[str]) -> dict[str, Any]:
    """Import a plugin in an empty folder, after the modules ``before``, and unpickle it."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        os.chdir(folder)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        for name in before:
            with suppress(Exception):
                import_module(name)
        spoken(said)
        state, modules = state_of(folder), set(sys.modules)
        error = tried(lambda: import_module(plugin["module"]), plugin["module"])
        report = {"error": error, "output": spoken(said), "changes": differences(state, state_of(folder))}
        own = plugin["module"].partition(".")[0]
        report["foreign"] = [name for name in list(sys.modules) if name not in modules and top(name) != own]
        if plugin["pickled"] and not error:
            found: list[Any] = []
            report["lost"] = tried(lambda: found.append(pickle.loads(base64.b64decode(plugin["pickled"]))))
            report["opened"] = opened_by(found[0]) if found else []
        return report


def top(name: str) -> str:
    """The package that a module belongs to."""
    return name.partition(".")[0]


def spoken(said: IO[bytes]) -> str:
    """What was printed since the last time."""
    sys.stdout.flush()
    sys.stderr.flush()
    said.seek(0)
    text = said.read().decode(errors="replace")
    said.seek(0)
    said.truncate()
    return text


def tried(act: Callable[[], Any], module: str = "") -> str:
    """The error of an act in one line, with the line of the module's file that it passed through."""
    try:
        act()
    except BaseException as error:  # sys.exit at the top of a module, too
        file = getattr(sys.modules.get(module), "__file__", None) or f"{module.rpartition('.')[2]}.py"
        lines = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(file).name]
        where = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
        return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
    return ""


def state_of(folder: str) -> dict[str, str]:
    """Whatever belongs to the whole process, by what it is called."""
    import numpy as np  # as torch: not before plugins were listed
    import torch

    root = logging.getLogger()
    handled = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {
        "the working directory": str(Path.cwd() == Path(folder).resolve() or Path.cwd()),
        "files in the working directory": str(sorted(os.listdir(folder))),
        **{f"os.environ[{key!r}]": repr(value) for key, value in os.environ.items()},
        "the state of random": repr(random.getstate()),
        "the state of numpy.random": repr(np.random.get_state(legacy=False)),
        "the state of torch's generator": repr(torch.get_rng_state().tolist()),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's default device": str(torch.get_default_device()),
        "torch's number of threads": str(torch.get_num_threads()),
        "whether torch records gradients": str(torch.is_grad_enabled()),
        "the level of the root logger": logging.getLevelName(root.level),
        "the handlers of the root logger": repr(root.handlers),
        "warnings.filters": repr(warnings.filters[:3]) + f" of {len(warnings.filters)}",
        **{f"the handler of {signal.Signals(number).name}": repr(found) for number, found in named(handled).items()},
        "threads that keep the process alive": repr([t.name for t in threading.enumerate() if not t.daemon]),
    }


def named(handled: dict[Any, Any]) -> dict[int, Any]:
    """Handlers of the signals that have a name."""
    return {int(number): found for number, found in handled.items() if isinstance(number, signal.Signals)}


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What changed, in words."""
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name} {change(before.get(name, 'unset'), after.get(name, 'unset'))}" for name in changed]


def change(before: str, after: str) -> str:
    """From what to what, where that is short enough to read."""
    return f"went from {before} to {after}" if len(before) + len(after) < 160 else "changed"


def opened_by(plugin: Any) -> list[str]:
    """The files that are opened while a plugin is made with these settings; those of imports do not count."""
    if not dataclasses.is_dataclass(plugin) or isinstance(plugin, type):
        return []
    given = {field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin) if field.init}
    found: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and not importing():
            found.append(arguments[0])

    sys.addaudithook(note)
    with suppress(Exception):  # that is another check's
        type(plugin)(**given)
    count = len(found)
    code = (".py", ".pyc", ".so")  # read by what imports, and by what shows tracebacks
    return [path for path in found[:count] if not path.startswith(("/dev/", "/proc/")) and not path.endswith(code)]


def importing() -> bool:
    """Whether somebody up the stack is importing."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
    return False


if __name__ == "__main__":
    main()
