"""A plugin author's machine: a virtual environment of its own, in which documentation is followed to the letter."""

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r"^(?:#|//|<!--) ([\w./-]+\.\w+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block: ``bash`` is typed, a file (its first or second line names it) is written, others are read."""

    page: str
    number: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file it is the content of."""
        found = (TITLE.match(line) for line in self.text.splitlines()[:2])  # Hydra wants "# @package" to be the first
        return next((match[1] for match in found if match), None)


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(page.name, number, *pair) for number, pair in enumerate(found, 1)]


@dataclass
class Author:
    """Follows pages in a folder, block by block; what one block leaves (files, the directory) the next one finds."""

    folder: Path
    python: Path

    def follow(self, page: Path) -> None:
        """Do what a page says; a failed check that it shows has to be one that was printed before."""
        here, printed = self.folder, ""
        for block in blocks(page):
            if block.file:
                (here / block.file).parent.mkdir(parents=True, exist_ok=True)
                (here / block.file).write_text(block.text, encoding="utf-8")
            elif block.language == "bash":
                here, told = self.type(block, here)
                printed += told
            elif block.text.startswith("FAILED"):
                lines = [line.strip() for line in printed.splitlines()]
                assert [line for line in block.text.splitlines() if line.strip() not in lines] == [], printed

    def type(self, block: Block, here: Path) -> tuple[Path, str]:
        """Run a block in a shell; gives the directory it ends in, and what it printed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLHF_", "HYDRA_", "PYTHON"))}
        environment = kept | {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        failing = r"if \1; then echo 'this should have failed: \1'; exit 1; fi"  # after a "!", bash goes on either way
        commands = re.sub(r"^! (.+)$", failing, block.text, flags=re.MULTILINE)
        script = f"set -euo pipefail\n{commands}\npwd > {self.folder}/.here"
        done = subprocess.run(["bash", "-c", script], cwd=here, env=environment, capture_output=True, text=True)
        told = done.stdout + done.stderr
        assert done.returncode == 0, f"{block.page}, block {block.number}:\n{block.text}\n{told}"
        return Path((self.folder / ".here").read_text().strip()), told


PIP = """#!/bin/bash
# no network: what packages need is here already
case "${{1-}}" in install|wheel) set -- "$1" --quiet --no-index --no-build-isolation "${{@:2}}";; esac
exec {python} -m pip "$@"
"""
COMMANDS = {"rlhf": "from rlhf_core.cli import main", "pytest": "from pytest import main"}


@pytest.fixture
def author(tmp_path: Path) -> Author:
    """An environment that sees all that this one has, and into which packages can be installed."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    parent = sysconfig.get_path("purelib")
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    for name, line in COMMANDS.items():
        (python.parent / name).write_text(f"#!{python}\nimport sys\n{line}\nsys.exit(main())\n")
    (python.parent / "pip").write_text(PIP.format(python=python))
    for name in (*COMMANDS, "pip"):
        (python.parent / name).chmod(0o755)
    (tmp_path / "work").mkdir()
    return Author(tmp_path / "work", python)
