"""What an install holds: the wheel's files, and the reason where the extension is not in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"rlhf_core": "rlhf_core", "plugins": "rlhf_plugins", "conf": "rlhf_core/conf"}
DATA = {".py", ".txt", ".yaml", ".html", ".j2", ".css", ".js", ".typed"}


def sources() -> dict[Path, str]:
    """Every file of the packages that belongs in the wheel, with its place there."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and (path.suffix in DATA or path.name == "py.typed"):
                found[path] = f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built without the extension, out of a copy of the tree, so that nothing left from other builds gets in."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_build.json"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(out), "."]
    environment = {**os.environ, "RLHF_BUILD_EXTENSION": "0", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
    return ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_every_source_and_nothing_else(wheel: ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {*sources().values(), "rlhf_core/_build.json"}


def test_wheel_says_why_there_is_no_extension(wheel: ZipFile) -> None:
    record = json.loads(wheel.read("rlhf_core/_build.json"))
    reason = "switched off by RLHF_BUILD_EXTENSION=0 when it was installed"
    assert record == {"reason": reason, "torch": None, "cuda": {"reason": reason, "version": None, "arch_list": []}}


def test_every_entry_point_names_a_file_of_the_wheel(wheel: ZipFile) -> None:
    listed = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    targets = [line.split("=")[1].strip() for line in wheel.read(listed).decode().splitlines() if "=" in line]
    assert targets
    missing = [target for target in targets if target.split(":")[0].replace(".", "/") + ".py" not in wheel.namelist()]
    assert not missing


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RLHF_BUILD_EXTENSION": "0"}, "switched off"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler found"),
        ({"hidden": "torch"}, "torch not found when it was installed; use pip install --no-build-isolation"),
    ],
)
def test_what_is_missing_is_recorded(
    environment: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    import compile_extension

    found = compile_extension.find_spec
    hidden = environment.pop("hidden", None)
    monkeypatch.setattr(compile_extension, "find_spec", lambda name: None if name == hidden else found(name))
    monkeypatch.delenv("RLHF_BUILD_EXTENSION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stale = tmp_path / "_C.so"
    stale.write_bytes(b"")
    record = tmp_path / "_build.json"
    assert not compile_extension.compile_extension(ROOT / "csrc", stale, tmp_path / "build", record)
    assert json.loads(record.read_text())["reason"].startswith(reason)
    assert not stale.exists()


def test_the_extension_can_be_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    import compile_extension

    monkeypatch.setenv("RLHF_BUILD_EXTENSION", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="RLHF_BUILD_EXTENSION=1"):
        compile_extension.compile_extension(ROOT / "csrc", tmp_path / "_C.so", tmp_path, tmp_path / "_build.json")
