"""Whether CUDA is built into the extension, what for, and the reason where it is not; no GPU and no toolkit needed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rlhf_core.kernels import extension

ROOT = Path(__file__).parents[2]
NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  --list-gpu-code) printf 'sm_80\\nsm_89\\nsm_90\\n{newer}' ;;
esac
"""


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """csrc/compile_extension.py, with a torch that says it has CUDA 13.0 and no GPU to look at."""
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    import compile_extension

    for name in ("RLHF_BUILD_EXTENSION", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return compile_extension


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Point CUDA_HOME at a toolkit of some version."""

    def make(version: str, newer: str = "sm_100\\n") -> Path:
        home = tmp_path / "cuda"
        for name in ("bin", "lib64", "include"):
            (home / name).mkdir(parents=True)
        nvcc = home / "bin" / "nvcc"
        nvcc.write_text(NVCC.format(version=version, newer=newer))
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(home))
        return home

    return make


def test_a_torch_without_cuda(build: ModuleType, toolkit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit("13.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.cuda_toolkit.find() == f"torch {torch.__version__} is built without CUDA"


@pytest.mark.parametrize("version", ["12.9", "14.0", "13.0"])
def test_the_toolkit_has_to_go_with_torch(version: str, build: ModuleType, toolkit: Callable[..., Path]) -> None:
    home = toolkit(version)
    found = build.cuda_toolkit.find()
    if version == "13.0":
        assert (found.home, found.version, found.arch_list) == (home, "13.0", ("8.0+PTX", "9.0a", "10.0"))
    else:
        assert found.startswith(f"the CUDA toolkit in {home} is {version}, torch has 13.0")


def test_no_toolkit(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.cuda_toolkit.find() == f"no bin/nvcc in {tmp_path}, where CUDA_HOME or the PATH leads"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("not a program")
    assert build.cuda_toolkit.find() == f"{tmp_path}/bin/nvcc does not run"
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(build.cuda_toolkit, "_home", lambda: None)
    assert build.cuda_toolkit.find().startswith("no CUDA toolkit found when it was installed")


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ("8.6;9.0+PTX", ["compute_86,code=sm_86", "compute_90,code=sm_90", "compute_90,code=compute_90"]),
        ("9.0a 10.0", ["compute_90a,code=sm_90a", "compute_100,code=sm_100"]),
        (None, ["compute_80,code=sm_80", "compute_80,code=compute_80", "compute_90a,code=sm_90a"]),
    ],
)
def test_architectures(
    asked: str | None,
    flags: list[str],
    build: ModuleType,
    toolkit: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toolkit("13.0", newer="")  # does not know sm_100
    if asked:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    found = [word.removeprefix("-gencode=arch=") for word in build.cuda_toolkit.find().flags.split() if "arch=" in word]
    assert found == flags


def test_architectures_of_the_gpus_here(
    build: ModuleType, toolkit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit("13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (8, 0), (9, 0)][device])
    assert build.cuda_toolkit.find().arch_list == ("8.0", "9.0")


def test_an_architecture_that_is_none(
    build: ModuleType, toolkit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    assert build.cuda_toolkit.find() == "TORCH_CUDA_ARCH_LIST: expected numbers such as 9.0 or 8.0+PTX, got Hopper"


def test_what_is_compiled(build: ModuleType, toolkit: Callable[..., Path], tmp_path: Path) -> None:
    home, sources = toolkit("13.0"), ROOT / "csrc"
    kernels = {path.name for path in (sources / "cuda").glob("*.cu")}
    bindings = {path.name for path in (sources / "cuda").glob("*_op.cpp")}
    for cuda in (build.cuda_toolkit.find(), None):
        build._write_ninja(sources, tmp_path / "_C.so", tmp_path / "build.ninja", cuda)
        text = (tmp_path / "build.ninja").read_text()
        compiled = {line.split("/")[-1] for line in text.splitlines() if line.startswith("build cuda/")}
        assert compiled == (kernels | bindings if cuda else set())
        assert ("-lc10_cuda" in text, f"{home}/bin/nvcc" in text, "-DRLHF_CUDA=13.0" in text) == (bool(cuda),) * 3


def test_a_cuda_build_that_fails_leaves_the_rest(
    build: ModuleType, toolkit: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit("13.0")
    monkeypatch.setattr(build, "_run_ninja", lambda *arguments: "the compiler failed: no" if arguments[-1] else None)
    record = tmp_path / "_build.json"
    arguments = (ROOT / "csrc", tmp_path / "_C.so", tmp_path / "scratch", record)
    assert build.compile_extension(*arguments)
    found = json.loads(record.read_text())
    assert (found["reason"], found["cuda"]["reason"]) == (None, "the compiler failed: no")
    monkeypatch.setenv("RLHF_BUILD_EXTENSION", "1")
    with pytest.raises(SystemExit, match="RLHF_BUILD_EXTENSION=1"):
        build.compile_extension(*arguments)


def test_what_was_built_is_recorded(
    build: ModuleType, toolkit: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit("13.0")
    monkeypatch.setattr(build, "_run_ninja", lambda *_: None)
    record = tmp_path / "_build.json"
    assert build.compile_extension(ROOT / "csrc", tmp_path / "_C.so", tmp_path / "scratch", record)
    assert json.loads(record.read_text())["cuda"] == {
        "reason": None, "version": "13.0", "arch_list": ["8.0+PTX", "9.0a", "10.0"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "cuda", "record", "reason"),
    [
        ("not compiled: no compiler", "none", {}, "not compiled: no compiler"),
        (None, "none", {"cuda": {"reason": "no CUDA toolkit"}}, "compiled without CUDA: no CUDA toolkit"),
        (None, "none", {}, "compiled without CUDA"),
        (None, "13.0", {}, "needs a CUDA device"),
    ],
)
def test_why_the_cuda_kernels_cannot_run(
    problem: str | None,
    cuda: str,
    record: dict[str, object],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(extension, "why_not", lambda: problem)
    monkeypatch.setattr(extension, "build_info", lambda: {"cuda": cuda})
    monkeypatch.setattr(extension, "RECORD", tmp_path / "_build.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    extension.RECORD.write_text(json.dumps(record))
    assert extension.cuda_why_not.__wrapped__() == reason
