"""Files out of packages: pip against a local folder of packages, so that no test needs a network."""

import hashlib
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from rlhf_core import fetch as module
from rlhf_core.errors import UserError
from rlhf_core.fetch import cache_folder, fetch

SDIST, WHEEL = "tinypkg-1.0.tar.gz", "tinypkg-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\nRequires-Dist: does-not-exist-anywhere\n"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with an sdist and a wheel, which is all that pip sees; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    with tarfile.open(folder / SDIST, "w:gz") as sdist:
        setup = "from setuptools import setup\nsetup(name='tinypkg', version='1.0')\n"
        for name, text in {"setup.py": setup, "PKG-INFO": METADATA, "data.txt": "only here\n"}.items():
            entry = tarfile.TarInfo(f"tinypkg-1.0/{name}")
            entry.size = len(text)
            sdist.addfile(entry, io.BytesIO(text.encode()))
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tinypkg/__init__.py", "")
        wheel.writestr("tinypkg-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tinypkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tinypkg-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error_of(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        fetch(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "filename"), [("sdist", SDIST), ("wheel", WHEEL)])
def test_fetched_once_then_read_from_the_cache(index, monkeypatch, capsys, kind, filename):
    path = fetch("tinypkg==1.0", filename, digest(index / filename), kind=kind, size_mb=2.4)
    assert path == cache_folder() / filename
    assert path.read_bytes() == (index / filename).read_bytes()
    assert capsys.readouterr().err == f"fetching {filename} (2.4 MB), once\n"
    monkeypatch.setattr(module, "_download", None)  # a second download would fail
    assert fetch("tinypkg==1.0", filename, digest(path), kind=kind) == path
    assert capsys.readouterr().err == ""
    assert list(path.parent.iterdir()) == [path]


def test_a_file_put_there_by_hand_needs_no_pip(index, monkeypatch):
    cache_folder().mkdir()
    (cache_folder() / "by_hand.bin").write_bytes(b"abc")
    monkeypatch.setattr(module, "installed", lambda name: False)
    path = fetch("nothing==1", "by_hand.bin", hashlib.sha256(b"abc").hexdigest(), kind="wheel")
    assert path.read_bytes() == b"abc"


def test_a_wrong_file_in_the_cache_is_named_with_both_hashes(index):
    cache_folder().mkdir()
    (cache_folder() / SDIST).write_bytes(b"damaged")
    message = error_of("tinypkg==1.0", SDIST, "0" * 64, kind="sdist")
    assert str(cache_folder() / SDIST) in message
    assert hashlib.sha256(b"damaged").hexdigest() in message
    assert "0" * 64 in message
    assert "delete" in message


def test_a_package_with_another_hash_never_reaches_the_cache(index):
    message = error_of("tinypkg==1.0", WHEEL, "0" * 64, kind="wheel")
    assert digest(index / WHEEL) in message
    assert list(cache_folder().iterdir()) == []


def test_no_network_and_no_cache_says_which_file_to_put_where(index):
    message = error_of("missing==2.0", "missing-2.0.tar.gz", "ab" * 32, kind="sdist")
    for part in ("missing-2.0.tar.gz", "ab" * 32, "sdist of missing==2.0 on PyPI", str(cache_folder())):
        assert part in message
    assert list(cache_folder().iterdir()) == []


def test_without_pip_the_message_says_so(index, monkeypatch):
    monkeypatch.setattr(module, "installed", lambda name: False)
    message = error_of("tinypkg==1.0", SDIST, "0" * 64, kind="sdist")
    assert "without pip" in message
    assert str(cache_folder() / SDIST) in message


def test_a_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "file" / "cache"))
    assert "RLHF_CACHE" in error_of("tinypkg==1.0", WHEEL, "0" * 64, kind="wheel")


@pytest.mark.parametrize(("setuptools", "wheel", "here"), [("84.2", False, True), ("65.5", False, False),
                                                            ("65.5", True, True), (None, True, False)])  # fmt: skip
def test_build_isolation_only_where_setuptools_cannot_do_it_alone(monkeypatch, setuptools, wheel, here):
    def version(name):
        if setuptools is None:
            raise PackageNotFoundError(name)
        return setuptools

    monkeypatch.setattr(module, "version", version)
    monkeypatch.setattr(module, "installed", lambda name: bool(wheel))
    assert ("--no-build-isolation" in module._selection("tinypkg==1.0", "sdist")) is here


def test_concurrent_callers_all_get_the_whole_file(index):
    sha256 = digest(index / WHEEL)
    with ThreadPoolExecutor(3) as pool:  # each runs a pip of its own
        paths = list(pool.map(lambda _: fetch("tinypkg==1.0", WHEEL, sha256, kind="wheel"), range(3)))
    assert [path.read_bytes() for path in paths] == [(index / WHEEL).read_bytes()] * 3
    assert [path.name for path in cache_folder().iterdir()] == [WHEEL]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("RLHF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rlhf_core"
