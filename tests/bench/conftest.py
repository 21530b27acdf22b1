"""``rlhf bench`` in this process, and a third party's package to bench."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_core import plugins
from rlhf_core.cli import main

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
import torch
import torch.nn.functional as F
"""

CLASS = """
@dataclass
class {cls}:
    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = {kind!r}
    ops: ClassVar[tuple[str, ...]] = ("preference_loss",)

    def why_not(self, op, device, dtype):
        return {why_not!r}

    def prepare(self, op, case):
        x, beta = case.packed, case.number("beta")
        def run():
            h = beta * (x["chosen"] - x["rejected"] - x["ref_chosen"] + x["ref_rejected"])
            loss = -F.logsigmoid(h).mean()
            {body}
        return run
"""


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run ``rlhf bench …``: its exit code and what it printed."""

    def run(*words: str) -> SimpleNamespace:
        threads = torch.get_num_threads()
        capsys.readouterr()
        try:
            code = main(["bench", *words])
        finally:
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package with benchmarks, as a distribution's metadata on the path; each is the body after ``loss``."""

    def forget() -> None:
        plugins.available.cache_clear()
        plugins._everything.cache_clear()

    def install(kind: str = "peer", why_not: str | None = None, **bodies: str) -> None:
        folder = tmp_path / "site"
        about = folder / "others-1.0.dist-info"
        about.mkdir(parents=True)
        classes = [
            CLASS.format(cls=name.title(), kind=kind, why_not=why_not, body=body) for name, body in bodies.items()
        ]
        module = f"others_{abs(hash(str(tmp_path)))}"
        (folder / f"{module}.py").write_text(HEAD + "".join(classes))
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{name.title()}\n" for name in bodies]
        (about / "entry_points.txt").write_text("[rlhf.benchmark]\n" + "".join(lines))
        monkeypatch.syspath_prepend(str(folder))
        forget()

    yield install
    monkeypatch.undo()
    forget()
