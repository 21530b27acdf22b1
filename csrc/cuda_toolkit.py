"""Finds nvcc for compile_extension.py: CUDA is built where torch has it and a toolkit goes with it, GPU or not."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ARCH_LIST = ("8.0+PTX", "9.0a", "10.0")
"""Where none is asked for and no GPU is seen, as far as nvcc knows them. Other devices translate the PTX themselves."""
ASKED = "TORCH_CUDA_ARCH_LIST"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that goes with the torch here.

    Attributes:
        home: the folder with bin/nvcc.
        version: such as 13.0.
        arch_list: what to compile for, written as in TORCH_CUDA_ARCH_LIST.
    """

    home: Path
    version: str
    arch_list: tuple[str, ...]

    @property
    def nvcc(self) -> Path:
        """The compiler."""
        return self.home / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        """Its headers."""
        return self.home / "include"

    @property
    def libraries(self) -> list[Path]:
        """Where libcudart may be."""
        return [self.home / name for name in ("lib64", "lib") if (self.home / name).is_dir()]

    @property
    def flags(self) -> str:
        """What nvcc is told besides the files."""
        host = f"-ccbin {os.environ['CXX'].split()[0]} " if os.environ.get("CXX") else ""
        return f"{host}-O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden {' '.join(map(_gencode, self.arch_list))}"

    @property
    def defines(self) -> str:
        """What build_info() says."""
        return f"""-DRLHF_CUDA={self.version} '-DRLHF_ARCH_LIST="{";".join(self.arch_list)}"'"""


def find() -> Toolkit | str:
    """The toolkit to build with, or why there is none."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    home = _home()
    if home is None:
        return "no CUDA toolkit found when it was installed (nvcc on the PATH, or set CUDA_HOME)"
    if not (home / "bin" / "nvcc").is_file():
        return f"no bin/nvcc in {home}, where CUDA_HOME or the PATH leads"
    found, needed = _version(home), torch.version.cuda
    if found is None:
        return f"{home / 'bin' / 'nvcc'} does not run"
    # Within one major number a newer toolkit's code runs with an older run time, and not the other way round.
    if _numbers(found)[0] != _numbers(needed)[0] or _numbers(found) < _numbers(needed):
        return f"the CUDA toolkit in {home} is {found}, torch has {needed}: the same major version is needed, not older"
    archs = _arch_list(home)
    wrong = [arch for arch in archs if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch)]
    if wrong:
        return f"{ASKED}: expected numbers such as 9.0 or 8.0+PTX, got {wrong[0]}"
    return Toolkit(home, found, archs)


def _home() -> Path | None:
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc")  # which may be a script somewhere else
    places = [*([Path(nvcc).resolve().parents[1]] if nvcc else []), Path("/usr/local/cuda")]
    return next((place for place in places if (place / "include" / "cuda_runtime.h").is_file()), None)


def _version(home: Path) -> str | None:
    match = re.search(r"release (\d+\.\d+)", _said(home, "--version"))
    return match[1] if match else None


def _said(home: Path, option: str) -> str:
    try:
        return subprocess.run([home / "bin" / "nvcc", option], capture_output=True, text=True).stdout
    except OSError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def _arch_list(home: Path) -> tuple[str, ...]:
    """What the user asks for, else what the GPUs here are, else the usual ones."""
    import torch

    if os.environ.get(ASKED):
        return tuple(os.environ[ASKED].replace(";", " ").replace(",", " ").split())
    if torch.cuda.is_available():
        seen = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
        return tuple(f"{major}.{minor}" for major, minor in sorted(seen))
    known = _said(home, "--list-gpu-code").split()
    return tuple(arch for arch in ARCH_LIST if f"sm_{_number(arch).rstrip('a')}" in known)


def _number(arch: str) -> str:
    return arch.removesuffix("+PTX").replace(".", "")


def _gencode(arch: str) -> str:
    number = _number(arch)
    real = f"-gencode=arch=compute_{number},code=sm_{number}"
    return f"{real} -gencode=arch=compute_{number},code=compute_{number}" if arch.endswith("+PTX") else real
