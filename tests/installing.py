"""Distributions, really installed with pip into folders of their own."""

import subprocess
import sys
import sysconfig
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]


def pip(*arguments: str | Path) -> None:
    """Install without a network and without touching the environment the tests run in."""
    done = subprocess.run([*PIP, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def editable(source: Path, folder: Path) -> Path:
    """``pip install -e`` under ``folder``; gives what goes on the path so that the installation is seen."""
    pip("--prefix", folder / "env", "--ignore-installed", "--editable", source)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder / "env")})
    (folder / "hook").mkdir()  # such an install works through a .pth file, which only a site folder honours
    (folder / "hook" / "sitecustomize.py").write_text(f"import site; site.addsitedir({packages!r})")
    return folder / "hook"
