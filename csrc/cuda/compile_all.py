"""Compiles the CUDA sources for each architecture, without a GPU: ``python csrc/cuda/compile_all.py``.

Fails where a kernel spills, has a stack frame or takes more shared memory than a block may have, and prints what each
takes. The bindings need torch built with CUDA to link, so here they are only checked for syntax.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
SHARED_LIMIT = {"sm_80": 163, "sm_90a": 227, "sm_100": 227}  # KiB a block
JOBS = int(os.environ.get("MAX_JOBS", "2"))


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one."""

    source: str
    arch: str
    name: str
    registers: int
    shared: int  # bytes
    stack: int  # bytes of stack frame and spills

    @property
    def bad(self) -> bool:
        """It does not fit."""
        return self.stack > 0 or self.shared > SHARED_LIMIT[self.arch] * 1024


def main() -> int:
    """The exit code."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("no nvcc on the PATH")
        return 1
    work = [(source, arch) for source in sorted(HERE.glob("*.cu")) for arch in SHARED_LIMIT]
    with ThreadPoolExecutor(JOBS) as pool:
        kernels = [kernel for found in pool.map(lambda one: compile_one(nvcc, *one), work) for kernel in found]
        show(kernels)
        failed = any(kernel.bad for kernel in kernels)
        include = Path(nvcc).resolve().parents[1] / "include"
        include = include if (include / "cuda_runtime.h").is_file() else Path("/usr/local/cuda/include")
        problems = pool.map(partial(check_binding, include), sorted(HERE.glob("*_op.cpp")))
        return int(any([failed, *problems]))


def compile_one(nvcc: str, source: Path, arch: str) -> list[Kernel]:
    """The kernels of a source. Raises where it does not compile."""
    command = [nvcc, "-O3", "-std=c++17", "-Werror=all-warnings", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
    done = subprocess.run([*command, "-o", os.devnull, str(source)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} for {arch}:\n{done.stdout}{done.stderr}")
    return [kernel_of(source.stem, arch, part) for part in re.split(r"Compiling entry function", done.stderr)[1:]]


def kernel_of(source: str, arch: str, said: str) -> Kernel:
    """From what ptxas -v says of one kernel."""

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, said)))

    (mangled,) = re.findall(r"^ '(\w+)'", said)
    stack = number(r"(\d+) bytes stack frame") + number(r"(\d+) bytes spill") + number(r"(\d+) bytes lmem")
    return Kernel(source, arch, plain(mangled), number(r"Used (\d+) reg"), number(r"(\d+) bytes smem"), stack)


def plain(mangled: str) -> str:
    """The kernel's own name with the number it is a template of, such as shaped_gae<8>."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return mangled
    full = subprocess.run([tool, mangled], capture_output=True, text=True).stdout
    match = re.search(r"(\w+(?:<[^()<>]*(?:\(\w+\)\d+)?>)?)\((?!anonymous)", full)
    return match[1].replace("(int)", "") if match else mangled


def show(kernels: list[Kernel]) -> None:
    """A row a kernel: registers and shared bytes on each architecture."""
    print(f"{'kernel':34}" + "".join(f"{arch + ' regs':>13}{'shared':>8}" for arch in SHARED_LIMIT))
    for source, name in dict.fromkeys((kernel.source, kernel.name) for kernel in kernels):
        row = [kernel for kernel in kernels if (kernel.source, kernel.name) == (source, name)]
        print(f"{name:34}" + "".join(f"{kernel.registers:13}{kernel.shared:8}" for kernel in row))
        for kernel in row:
            if kernel.bad:
                print(f"  FAILED on {kernel.arch}: {kernel.stack} bytes of stack and spills, {kernel.shared} shared")


def check_binding(include: Path, source: Path) -> bool:
    """Whether the binding has errors; it is not looked at where there is no torch, compiler or CUDA header."""
    compiler = shutil.which("g++")
    try:
        from torch.utils.cpp_extension import include_paths
    except ImportError:
        compiler = None
    if compiler is None or not (include / "cuda_runtime.h").is_file():
        print(f"{source.name}: not checked; needs torch, g++ and the CUDA headers")
        return False
    folders = [part for folder in [*include_paths(), include] for part in ("-isystem", str(folder))]
    # A torch without CUDA lacks a header that its build would have generated; the macro leaves it out.
    flags = ["-fsyntax-only", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
    done = subprocess.run([compiler, *flags, *folders, str(source)], capture_output=True, text=True)
    print(f"{source.name}: {'FAILED' if done.returncode else 'syntax checked'}\n{done.stderr}".rstrip())
    return bool(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
