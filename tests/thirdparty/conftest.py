"""Third-party distributions, really installed with pip into folders of their own."""

import importlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import rlhf_core
from rlhf_core import describe, plugins, presets
from rlhf_core.hydra_glue import Composed, launch

from ..installing import editable as install_editable
from ..installing import pip

HERE = Path(__file__).parent
STILL = ["policy=still", "algorithm=still", "data=still", "data.file=x", "rollout=null"]
"""A configuration whose plugins do nothing and import no torch."""

Run = Callable[..., subprocess.CompletedProcess[str]]


def sources(folder: Path, *names: str) -> list[Path]:
    """Copies to build from: a build writes into its source folder."""
    for name in names:
        shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        if name == "broken":  # no linter would let this one into the repository
            (folder / name / "rlhf_broken_syntax.py").write_text("class Broken\n")
    return [folder / name for name in names]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a good package and its bad neighbours are installed."""
    target = tmp_path_factory.mktemp("site")
    pip("--target", target, *sources(tmp_path_factory.mktemp("sources"), "good", "broken", "oldapi"))
    return target


@pytest.fixture(scope="session")
def clashing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages that register names which others have."""
    target = tmp_path_factory.mktemp("clashing")
    pip("--target", target, *sources(tmp_path_factory.mktemp("sources"), "clash", "lookalike"))
    return target


@pytest.fixture
def editable(tmp_path: Path) -> tuple[Path, Path]:
    """A good package installed by ``pip install -e``: the folder for the path, and its source."""
    (source,) = sources(tmp_path, "good")
    return install_editable(source, tmp_path), source


@pytest.fixture
def still() -> list[str]:
    """Overrides that choose plugins which do nothing."""
    return STILL


@pytest.fixture
def rlhf(site: Path, tmp_path: Path) -> Run:
    """Run ``rlhf`` in a process of its own, with the third party installed, in an empty folder."""

    def run(*argv: str, path: tuple[Path, ...] = (site,), **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLHF_", "HYDRA_"))}
        environment = kept | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"} | variables
        command = [sys.executable, "-m", "rlhf_core.cli", *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    return run


@pytest.fixture
def installed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The third party installed for this process, which works in an empty folder."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_TRACEBACK", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    forget()
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers  # `--info` adds one that writes to this test's stdout
    for name in [name for name in sys.modules if name.startswith(("rlhf_good", "rlhf_broken", "rlhf_oldapi"))]:
        del sys.modules[name]
    monkeypatch.undo()
    forget()


def forget() -> None:
    """What was found on another path no longer holds."""
    importlib.invalidate_caches()
    for module in (plugins, presets, describe):
        for thing in vars(module).values():
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()


class Jobs:
    """Stands in for the training behind ``rlhf train`` and ``rlhf pipeline``: keeps what it is handed."""

    def __init__(self) -> None:
        self.seen: list[Composed] = []
        self.act: Callable[[Composed], None] = lambda composed: None

    def __call__(self, composed: Composed) -> None:
        self.seen.append(composed)
        text = "".join(f"{line}\n" for line in composed.overrides)
        (composed.folder / "overrides.txt").write_text(text)
        if composed.command == "pipeline":
            (composed.folder / "pipeline.json").write_text("{}")
        self.act(composed)

    def train(self, *overrides: str) -> int:
        """``rlhf train`` with plugins that do nothing, in this process."""
        return launch("train", [*STILL, *overrides])

    def pipeline(self, *overrides: str) -> int:
        """``rlhf pipeline``, in this process."""
        return launch("pipeline", list(overrides))


@pytest.fixture
def jobs(installed: None, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Runs commands in this process and records their jobs."""
    recorded = Jobs()
    for name, function in (("run", "train"), ("pipeline", "run")):
        module = ModuleType(f"rlhf_core.{name}")
        setattr(module, function, recorded)
        monkeypatch.setitem(sys.modules, f"rlhf_core.{name}", module)
        monkeypatch.setattr(rlhf_core, name, module, raising=False)
    return recorded
