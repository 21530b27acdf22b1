"""Compiles csrc/cuda/*.cu for the host (cuda_runtime.h of this folder) and calls their launchers on CPU tensors."""

import ctypes
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# A vector load that is not aligned, and a shift or an index out of range, end the process as a GPU would.
CHECKED = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
TYPES = {"int64_t": ctypes.c_int64, "float": ctypes.c_float, "bool": ctypes.c_bool, "T": ctypes.c_float}
MARGIN = 64  # elements around an input or output that nobody may look at or touch
NAN = float("nan")


def why_not() -> str | None:
    """Why it cannot be compiled here, or None."""
    if not sys.platform.startswith("linux"):
        return "its fibers need Linux"
    return None if shutil.which("g++") else "no g++ to compile the CUDA sources for the host with"


def compiled(folder: Path) -> ctypes.CDLL:
    """All launchers in one library."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        flags = [*FLAGS, *(CHECKED if source.suffix == ".cu" else ()), f"-I{HERE}"]
        subprocess.run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [HERE / "emulator.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]))
    library = folder / "cuda_on_host.so"
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@cache
def structure(header: str, name: str) -> type[ctypes.Structure]:
    """The struct ``name`` of a file of csrc/, as it stands there: its fields are not written down twice."""
    text = re.sub(r"//.*", "", (CSRC / header).read_text(encoding="utf-8"))
    match = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert match, f"no struct {name} in {header}"
    fields: list[tuple[str, Any]] = []
    for line in filter(None, (line.strip() for line in match[1].split(";"))):
        kind, names = re.fullmatch(r"(.*?[ *])([\w, ]+)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        fields += [(field.strip(), type_of(kind.strip())) for field in names.split(",")]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@cache
def type_of(kind: str) -> Any:
    """What a C++ type is to ctypes."""
    if kind.endswith("*"):
        return ctypes.c_void_p
    if kind == "Number":
        return structure("cuda/number.h", kind)
    if kind.endswith("Options<float>"):
        name = kind.removesuffix("<float>")
        return structure(f"terms/{name.removesuffix('Options').lower()}.h", name)
    return TYPES.get(kind, ctypes.c_int)  # what is left is an enum


def guarded(tensor: Tensor, shift: int) -> Tensor:
    """A copy inside a buffer of NaN (or of ones, for masks and integers), ``shift`` elements off 16-byte alignment."""
    poison = NAN if tensor.is_floating_point() else 1
    buffer = torch.full((len(tensor) + 2 * MARGIN + shift,), poison, dtype=tensor.dtype)
    view = buffer[MARGIN + shift : MARGIN + shift + len(tensor)]
    return view.copy_(tensor)


def untouched(tensor: Tensor) -> bool:
    """Nothing was written around a ``guarded`` tensor."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    begin, end = tensor.storage_offset(), tensor.storage_offset() + len(tensor)
    return bool(torch.cat([storage[:begin], storage[end:]]).isnan().all())


class Host:
    """The launchers, ready to be called.

    Attributes:
        order: of blocks and threads: 0 is ascending, another number shuffles by it.
        shift: how far tensors lie from 16-byte alignment, in elements.
    """

    def __init__(self, folder: Path) -> None:
        self.library = compiled(folder)
        self.order, self.shift = 0, 0

    def given(self, tensor: Tensor | None, mask: Tensor | None = None) -> Tensor | None:
        """An input as a kernel gets it: nothing around it, and nothing where it is masked, may be looked at."""
        if tensor is None:
            return None
        if mask is not None:
            tensor = torch.where(mask, tensor, NAN)
        return guarded(tensor, self.shift)

    def out(self, *sizes: int) -> Tensor:
        """A float32 output, poisoned."""
        return guarded(torch.full(sizes, NAN), self.shift) if sizes else torch.tensor(NAN)

    def run(self, op: str, struct: str, **fields: Any) -> None:
        """Call ``rlhf_<op>`` with a task of these fields; others are 0. The workspace comes dirty."""
        task = structure(f"cuda/{op}.h", struct)()
        for name, value in fields.items():
            fill(task, name, value)
        size = getattr(self.library, f"rlhf_{op}_workspace")
        size.restype = ctypes.c_size_t
        # Not all of them depend on the task; C does not mind an argument too many.
        workspace = torch.full((size(ctypes.byref(task)),), 0xFF, dtype=torch.uint8)
        self.library.emulator_order(self.order)
        error = getattr(self.library, f"rlhf_{op}")(ctypes.byref(task), ctypes.c_void_p(workspace.data_ptr()), None)
        assert error == 0, f"{op}: CUDA error {error}"
        for name, value in fields.items():
            if isinstance(value, Tensor) and value.dim() and value.is_floating_point():
                assert untouched(value), f"{op} wrote around {name}"


def fill(task: ctypes.Structure, name: str, value: Any) -> None:
    """Set a field: a tensor is its pointer, a mapping the fields of a struct, None the null pointer."""
    if isinstance(value, dict):
        for key, inner in value.items():
            fill(getattr(task, name), key, inner)
    elif isinstance(value, Tensor):
        setattr(task, name, value.data_ptr())
    elif value is not None:
        setattr(task, name, value)
