"""What is asked of every plugin: each fault is found by its check, ours have none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from rlhf_core import plugins
from rlhf_core.contracts import CONTRACTS
from rlhf_core.errors import UserError
from rlhf_core.testing import attempt, kind_of
from rlhf_core.testing.check import Outcome
from rlhf_core.testing.checks.plugin import CHECKS
from rlhf_core.testing.clean import prime, report_on

from .wrong_plugin import RIGHT, WRONG

ARGUMENTS: dict[str, dict[str, Any]] = {"NoDefault": {"path": "x"}}


def failures(plugin: Any, kind: str = "") -> dict[str, Outcome]:
    with suppress(UserError):  # of some that lack nearly all, nothing tells the kind
        kind = kind or kind_of(plugin)
    outcomes = [attempt(check, plugin, kind or "reward") for check in CHECKS]
    return {outcome.check.name: outcome for outcome in outcomes if outcome.status == "failed"}


@pytest.fixture(scope="module")
def wrong() -> dict[type, Any]:
    """An instance of each, all of them shown to one clean process."""
    made = {cls: cls(**ARGUMENTS.get(cls.__name__, {})) for cls in WRONG}
    prime([*made.values(), *RIGHT])
    return made


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_each_fault_is_found_by_its_check(cls, wrong):
    checks, telling = WRONG[cls]
    found = failures(wrong[cls])
    assert set(found) == checks, "\n".join(map(str, found.values()))
    assert any(telling in outcome.came for outcome in found.values()), "\n".join(map(str, found.values()))
    assert all(outcome.cure and outcome.expected for outcome in found.values())


@pytest.mark.parametrize("number", range(len(RIGHT)), ids=lambda number: type(RIGHT[number]).__name__)
def test_right_ones_pass(number, wrong):
    assert not failures(RIGHT[number]), "\n".join(map(str, failures(RIGHT[number]).values()))


def test_every_check_finds_something():
    found = {name for checks, _ in WRONG.values() for name in checks} | {name for _, name, _ in SOURCES.values()}
    assert {check.name for check in CHECKS} - found == {"is_listed_without_importing"}  # has a test of its own
    assert len({check.name for check in CHECKS}) == len(CHECKS)


PLUGIN = '''
import logging, os, random, signal, sys, threading, warnings
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import torch

if "pytest" not in sys.modules:
    {}

@dataclass
class Plugin:
    """It was given something to do."""
    rlhf_api: ClassVar[int] = 1
    def setup(self, run): ...
    def score(self, samples): return torch.zeros(len(samples))
'''
EFFECT = "imports_without_side_effects"
SOURCES = {
    "prints": ("print('hello')", "imports_in_silence", "hello"),
    "prints_from_c": ("os.write(2, b'from C')", "imports_in_silence", "from C"),
    "warns": ("warnings.warn('soon gone')", "imports_in_silence", "soon gone"),
    "seeds": ("torch.manual_seed(0)", EFFECT, "torch's generator"),
    "seeds_random": ("random.seed(0)", EFFECT, "the state of random"),
    "seeds_numpy": ("np.random.seed(0)", EFFECT, "the state of numpy.random"),
    "dtype": ("torch.set_default_dtype(torch.float64)", EFFECT, "went from torch.float32 to torch.float64"),
    "threads": ("torch.set_num_threads(torch.get_num_threads() + 1)", EFFECT, "torch's number of threads"),
    "gradients": ("torch.set_grad_enabled(False)", EFFECT, "whether torch records gradients"),
    "folder": ("os.chdir('/')", EFFECT, "the working directory"),
    "environment": (
        "os.environ['CUDA_VISIBLE_DEVICES'] = '0'",
        EFFECT,
        "VISIBLE_DEVICES'] went from unset to '0'",
    ),
    "logging": ("logging.basicConfig(level=logging.DEBUG)", EFFECT, "from WARNING to DEBUG"),
    "filters": ("warnings.filterwarnings('ignore')", EFFECT, "warnings.filters"),
    "signal": ("signal.signal(signal.SIGINT, signal.SIG_IGN)", EFFECT, "the handler of SIGINT"),
    "file": ("open('cache.txt', 'w').close()", EFFECT, "cache.txt"),
    "thread": ("threading.Thread(target=threading.Event().wait, name='poller').start()", EFFECT, "poller"),
    "exits": ("sys.exit(3)", "imports_alone", "SystemExit: 3"),
    "ends": ("os._exit(3)", "imports_alone", "exit code 3"),
    "needs": ("import not_installed_anywhere", "imports_alone", "not_installed_anywhere"),
    "needs_a_test": ("raise ImportError('run me by pytest')", "imports_alone", "(imported_needs_a_test.py, line 9)"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Plugins of modules of their own, by name; what they do they do where pytest is not."""
    folder = tmp_path_factory.mktemp("modules")
    sources = {name: PLUGIN.format(effect) for name, (effect, _, _) in SOURCES.items()}
    library = "import os\nprint('a banner')\nos.environ['LIBRARY'] = '1'\n"
    (folder / "a_library.py").write_text(library.replace("print", "import sys\n'pytest' in sys.modules or print"))
    sources["quiet"] = PLUGIN.format("import a_library")
    for name, source in sources.items():
        (folder / f"imported_{name}.py").write_text(source)
    sys.path.insert(0, str(folder))
    made = {name: __import__(f"imported_{name}").Plugin() for name in sources}
    prime(made.values())
    yield made.__getitem__
    sys.path.remove(str(folder))


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_module_does_is_found(name, imported):
    _, check, telling = SOURCES[name]
    found = failures(imported(name))
    assert set(found) == {check}, "\n".join(map(str, found.values()))
    assert telling in found[check].came
    assert found[check].cure


def test_what_libraries_do_is_not_the_plugins_doing(imported):
    assert not failures(imported("quiet"))


def test_a_class_of_main_is_told_where_to_go(monkeypatch):
    @dataclass
    class Plugin:
        """Typed at a prompt."""

        rlhf_api: ClassVar[int] = 1

        def setup(self, run: Any) -> None: ...
        def score(self, samples: Any) -> Any: ...

    Plugin.__module__, Plugin.__qualname__ = "__main__", "Plugin"
    monkeypatch.setattr(sys.modules["__main__"], "Plugin", Plugin, raising=False)
    found = failures(Plugin())
    assert set(found) == {"imports_alone"}
    assert "__main__" in found["imports_alone"].came
    assert found["imports_alone"].cure == "move the class into a module of its own"


def test_a_module_that_has_no_file_is_told(monkeypatch):
    module = type(sys)("made_up")
    exec(PLUGIN.format("pass"), vars(module))
    monkeypatch.setitem(sys.modules, "made_up", module)
    found = failures(module.Plugin())
    assert set(found) == {"imports_alone", "is_listed_as_it_is"}
    assert "No module named 'made_up'" in found["imports_alone"].came
    assert "there is no file for module made_up" in found["is_listed_as_it_is"].came


def test_a_module_under_another_name_than_its_file_has_is_found(tmp_path, monkeypatch):
    from importlib.util import module_from_spec, spec_from_file_location

    (tmp_path / "file.py").write_text(PLUGIN.format("pass"))
    spec = spec_from_file_location("another_name", tmp_path / "file.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "another_name", module)
    spec.loader.exec_module(module)
    assert not failures(module.Plugin())


def test_listing_that_imports_is_seen(tmp_path, monkeypatch, imported):
    """As where a distribution has code run when the interpreter starts."""
    (tmp_path / "sitecustomize.py").write_text("import numpy\n")
    (tmp_path / "imported_late.py").write_text(PLUGIN.format("pass"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = failures(__import__("imported_late").Plugin())
    assert set(found) == {"is_listed_without_importing"}
    assert "numpy" in found["is_listed_without_importing"].came


def test_a_clean_process_is_asked_once(imported, monkeypatch):
    monkeypatch.setattr("subprocess.run", None)
    assert report_on(imported("prints")).output == "hello\n"


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    made = {f"{kind}={name}": plugins.load(kind, name)() for kind in CONTRACTS for name in plugins.available(kind)}
    prime(made.values())
    return made


def test_ours_pass(ours):
    found = {name: list(map(str, failures(plugin, name.partition("=")[0]).values())) for name, plugin in ours.items()}
    assert {name: texts for name, texts in found.items() if texts} == {}
    assert len(ours) > 50
