"""Write a build.ninja for csrc/ and run it, against the torch that is installed here.

Own code rather than torch.utils.cpp_extension, for flags a source: one object file an instruction set. What can be
missing (torch, pybind11, ninja, a compiler) is looked for first; a build without them is an install without the
extension, and ``_build.json`` keeps the reason for ``rlhf doctor``.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cuda_toolkit
from cuda_toolkit import Toolkit

SWITCH = "RLHF_BUILD_EXTENSION"  # 0 skips, 1 makes a build that cannot compile an error, unset tries
ISAS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512",
}


def compile_extension(sources: Path, library: Path, scratch: Path, record: Path) -> bool:
    """Compile ``sources`` into ``library``; say in ``record`` what was built, or why nothing was."""
    built = _build(sources, library, scratch)
    reason = built["reason"]
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(built) + "\n")
    if reason:
        library.unlink(missing_ok=True)  # one left from an earlier build would not match the record
        print(f"rlhf-core: built without the C++ extension: {reason}", file=sys.stderr)
        if os.environ.get(SWITCH) == "1":
            raise SystemExit(f"{SWITCH}=1 asks for the extension")
    return not reason


def _build(sources: Path, library: Path, scratch: Path) -> dict[str, Any]:
    """Compile what can be, with CUDA or without; what was built and why not more, for the record."""
    reason = _missing()
    if reason:
        return {"reason": reason, "torch": None, "cuda": _cuda(reason)}
    cuda = cuda_toolkit.find()
    reason = _run_ninja(sources, library, scratch, cuda if isinstance(cuda, Toolkit) else None)
    if reason and isinstance(cuda, Toolkit) and os.environ.get(SWITCH) != "1":
        cuda, reason = reason, _run_ninja(sources, library, scratch, None)
    return {"reason": reason, "torch": None if reason else version("torch"), "cuda": _cuda(reason or cuda)}


def _cuda(found: Toolkit | str) -> dict[str, Any]:
    """The CUDA part of the record: what it was built with, or why it was not."""
    if isinstance(found, Toolkit):
        return {"reason": None, "version": found.version, "arch_list": list(found.arch_list)}
    return {"reason": found, "version": None, "arch_list": []}


def _missing() -> str | None:
    """Why nothing can be compiled here, in words for people."""
    if os.environ.get(SWITCH) == "0":
        return f"switched off by {SWITCH}=0 when it was installed"
    absent = [name for name in ("torch", "pybind11", "ninja") if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not found when it was installed; use pip install --no-build-isolation"
    if os.name != "posix":
        return f"{platform.system()} is not supported"
    return None if _compiler() else "no C++ compiler found when it was installed (c++, g++ or clang++, or set CXX)"


def _compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name.split()[0])), None)


def _is_gcc() -> bool:
    """Clang's OpenMP calls another runtime than the one torch brings, so with it the CPU kernels use one thread."""
    named = subprocess.run([*(_compiler() or "").split(), "--version"], capture_output=True, text=True).stdout
    return "clang" not in named.lower()


def _run_ninja(sources: Path, library: Path, scratch: Path, cuda: Toolkit | None) -> str | None:
    """Why it failed, or None."""
    from ninja import BIN_DIR

    scratch.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    _write_ninja(sources.resolve(), library.resolve(), scratch / "build.ninja", cuda)
    command = [str(Path(BIN_DIR, "ninja")), "-C", str(scratch), *_jobs()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, file=sys.stderr)
    errors = [line for line in done.stdout.splitlines() if "error" in line]
    return None if done.returncode == 0 else f"the compiler failed: {(errors or ['see the build log'])[0]}"


def _jobs() -> list[str]:
    """A source with torch headers takes about 1 GB, so MAX_JOBS has a say, as in torch's own builds."""
    return ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []


def _write_ninja(sources: Path, library: Path, target: Path, cuda: Toolkit | None) -> None:
    import pybind11
    import torch
    from ninja.ninja_syntax import Writer
    from torch.utils.cpp_extension import include_paths, library_paths

    isas = ISAS if platform.machine().lower() in {"x86_64", "amd64"} else {"baseline": ""}
    python = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    defines = [f"-DRLHF_HAVE_{name.upper()}" for name in isas]
    defines += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    # No contraction into fused multiply-adds: every instruction set then gives the same bits.
    # Tiles are moved as words whatever numbers they hold, which strict aliasing forbids.
    exact = "-ffp-contract=off -fno-strict-aliasing"
    common = f"-std=c++20 -O3 -fPIC -fvisibility=hidden {exact} -Wall -Wextra {' '.join(defines)}"
    objects: list[str] = []
    with target.open("w", encoding="utf-8") as file:
        ninja = Writer(file, width=120)
        ninja.rule(
            "compile", f"{_compiler()} -MMD -MF $out.d {common} $flags -c $in -o $out", depfile="$out.d", deps="gcc"
        )
        ninja.rule("link", f"{_compiler()} -shared $in -o $out $libraries")

        def compile_one(source: Path, name: str, flags: str) -> None:
            objects.extend(ninja.build(f"{name}.o", "compile", str(source), variables={"flags": flags}))

        for source in sorted(sources.rglob("*.cpp")):
            name = source.relative_to(sources).as_posix()
            if name.startswith("cuda/") and cuda is None:
                continue
            if name.startswith("cpu/") and not name.endswith(("_op.cpp", "isa.cpp", "pool.cpp")):  # a kernel: plain C++
                for isa, flags in isas.items():
                    # Vectors are passed within one object only, so how other compilers pass them is no matter.
                    compile_one(
                        source, f"{name}.{isa}", f"{flags} -Wno-psabi -Wno-maybe-uninitialized -DRLHF_ISA={isa}"
                    )
            else:
                # -isystem: warnings are about this code alone.
                folders = [*python, *(include_paths() if name != "cpu/isa.cpp" else [])]
                if name.startswith("cuda/") and cuda:
                    folders.append(str(cuda.include))
                # at::parallel_for is a template that uses threads only under OpenMP. Its runtime is not linked: the
                # symbols come from the one that torch loaded, or there would be two pools of threads.
                flags = ["-fopenmp"] if _is_gcc() else []
                flags += [cuda.defines] if cuda and name == "build_info.cpp" else []
                compile_one(source, name, " ".join([*flags, *(f"-isystem {folder}" for folder in folders)]))
        folders, libraries = [*library_paths()], "-lc10 -ltorch_cpu -ltorch"
        if cuda:
            objects.extend(_kernels_for_gpus(ninja, sources, cuda))
            folders += map(str, cuda.libraries)
            libraries += " -lc10_cuda -ltorch_cuda -lcudart"
        libraries = " ".join([*(f"-L{folder}" for folder in folders), libraries])
        ninja.build(str(library), "link", objects, variables={"libraries": libraries})
        ninja.default(str(library))


def _kernels_for_gpus(ninja: Any, sources: Path, cuda: Toolkit) -> list[str]:
    """Rules for the .cu files; their objects."""
    ninja.rule("nvcc", f"{cuda.nvcc} {cuda.flags} -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
    names = [source.relative_to(sources).as_posix() for source in sorted(sources.rglob("*.cu"))]
    return [out for name in names for out in ninja.build(f"{name}.o", "nvcc", str(sources / name))]
