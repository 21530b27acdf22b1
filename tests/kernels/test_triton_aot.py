"""Every Triton kernel compiled for a real GPU, an sm_90, without one: nothing is spilled, shared memory suffices.

The ops are called as users call them, with many options, and in place of each launch its arguments are written down.
"""

import os
import pkgutil
import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf_core import kernels
from rlhf_core.kernels import triton as backend
from rlhf_core.kernels.dispatch import Implementation

from .cases import build, covering

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles only without TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED_MEMORY = 227 * 1024  # bytes a block may have on sm_90
SETTINGS = ("num_warps", "num_stages", "enable_fp_fusion")
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
Launch = tuple[JITFunction, dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any], dict[str, Any]]


def modules() -> list[ModuleType]:
    """Those of the folder, whether or not this machine could run them."""
    return [import_module(f"{backend.__name__}.{module.name}") for module in pkgutil.iter_modules(backend.__path__)]


def kernels_of(module: ModuleType) -> dict[str, JITFunction]:
    own = {
        name: x for name, x in vars(module).items() if isinstance(x, JITFunction) and x.__module__ == module.__name__
    }
    return {name: kernel for name, kernel in own.items() if name.endswith("_kernel")}


def written_down(launches: dict[str, Launch]) -> Callable[..., None]:
    """What takes the place of a launch: types and constants as triton would specialise them, each once."""

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in SETTINGS if name in named}
        types: dict[str, str] = {}
        constants, attributes = {}, {}
        for place, (name, value) in enumerate(kernel.signature.bind(*args, **named).arguments.items()):
            one = type(value) is int and value == 1
            if kernel.params[place].is_constexpr or value is None or one:
                types[name], constants[place,] = "constexpr", value
                continue
            types[name] = POINTERS[value.dtype] if torch.is_tensor(value) else "fp32" if type(value) is float else "i32"
            if torch.is_tensor(value) or (type(value) is int and value % 16 == 0):
                attributes[place,] = [["tt.divisibility", 16]]
        launch = (kernel, types, constants, attributes, options)
        launches[f"{kernel.__name__}{launch[1:]}"] = launch

    return run


def call_from_logits() -> None:
    """Rows that begin where 16-byte loads want them, and rows that do not."""
    for dtype, vocabulary, entropy in product(backend.DTYPES, (48, 45), (True, False)):
        logits = torch.zeros(3, vocabulary, dtype=dtype, requires_grad=True)
        labels = torch.zeros(3, dtype=torch.int64)
        found = kernels.logprobs_from_logits(logits, labels, entropy=entropy, backend="triton")
        (found[0] + found[1] if isinstance(found, tuple) else found).sum().backward()


def call_token_logprobs() -> None:
    for dtype, bias, entropy in product(backend.DTYPES, (True, False), (True, False)):
        hidden, weight, b = (torch.zeros(*s, dtype=dtype, requires_grad=True) for s in ((3, 8), (45, 8), (45,)))
        call = {"bias": b if bias else None, "entropy": entropy, "backend": "triton"}
        found = kernels.token_logprobs(hidden, weight, torch.zeros(3, dtype=torch.int64), **call)
        (found[0] + found[1] if isinstance(found, tuple) else found).sum().backward()


def call_linear_policy_loss() -> None:
    for dtype, aggregate in product(backend.DTYPES, ("token", "sequence")):
        hidden, weight = (torch.zeros(*s, dtype=dtype, requires_grad=True) for s in ((3, 8), (45, 8)))
        given = (torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.zeros(3))
        call = {"aggregate": aggregate, "cu_seqlens": torch.tensor([0, 1, 3], dtype=torch.int32), "entropy_coef": 0.1}
        kernels.linear_policy_loss(hidden, weight, *given, **call, backend="triton")[0].backward()


# Causal, window, shared prompts: a head size and dtype has one of these, because a compilation takes a second.
ATTENTION = [(True, None, False), (False, 9, True), (True, None, True), (False, None, False), (True, 9, False)]


def call_attention() -> None:
    for number, (dtype, size) in enumerate(product(backend.DTYPES, (32, 64, 96, 128))):
        causal, window, shared = ATTENTION[number % len(ATTENTION)]
        q, k, v = (torch.zeros(48, heads, size, dtype=dtype, requires_grad=True) for heads in (6, 2, 2))
        counts = torch.tensor([1], dtype=torch.int32) if shared else None
        call = {"causal": causal, "window": window, "responses_per_prompt": counts, "return_lse": True}
        out, lse = kernels.attention(q, k, v, torch.tensor([0, 9, 48], dtype=torch.int32), **call, backend="triton")
        (out.sum() + lse.sum() if number % 2 else out.sum()).backward()


def call_decode_attention() -> None:
    for number, (dtype, size) in enumerate(product(backend.DTYPES, (32, 64, 96, 128))):
        q, cache = (torch.zeros(*shape, size, dtype=dtype) for shape in ((2, 6), (2, 48, 2)))
        lengths = torch.zeros(2, dtype=torch.int32)
        names = [("prefix_k", cache), ("prefix_v", cache), ("prefix_of", lengths), ("prefix_lengths", lengths)]
        prefix = dict(names[: (0, 3, 4)[number % 3]])
        kernels.decode_attention(q, cache, cache, lengths, **prefix, backend="triton")


CALLS: dict[str, Callable[[], None]] = {
    "attention": call_attention,
    "decode_attention": call_decode_attention,
    "logprobs_from_logits": call_from_logits,
    "token_logprobs": call_token_logprobs,
    "linear_policy_loss": call_linear_policy_loss,
}
"""Of ops that cases.py has no options of."""


def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Of every op, with numbers on the host and on the device, and sizes that suit 16-byte loads or do not."""
    launches: dict[str, Launch] = {}
    monkeypatch.setattr(JITFunction, "run", written_down(launches))
    found = {module.__name__.rsplit(".", 1)[1]: module for module in modules()}
    for name, ops in backend.MODULES.items():
        for op in ops:
            monkeypatch.setitem(op.implementations, "triton", Implementation(found[name].run))
            if op.name in CALLS:
                CALLS[op.name]()
                continue
            for number, choice in enumerate(covering(op.name)[::4]):
                on_device = hasattr(found[name], "argument") and number % 2 == 0
                with monkeypatch.context() as patch:
                    if on_device:
                        patch.setattr(found[name], "argument", lambda x: x)
                    build(op.name, choice, [[480, 32], [7, 0, 94], [1]][number % 3]).run("triton")
    first = {launch[0]: launch for launch in reversed(launches.values())}
    return [*launches.values(), *map(of_more_than_int32, first.values())]


def of_more_than_int32(launch: Launch) -> Launch:
    """With sizes past 2³¹."""
    kernel, types, *rest = launch
    return (kernel, {name: "i64" if kind == "i32" else kind for name, kind in types.items()}, *rest)


def test_every_kernel_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {kernel.__name__ for kernel, *_ in launched(monkeypatch)}
    missing = {name for module in modules() for name in kernels_of(module)} - found
    assert not missing, "kernels that no op launches with the options of cases.py"


PARTS = 4
"""so that several processes share the work"""


@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_fit_the_machine(part: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not CUOBJDUMP.exists():
        pytest.skip("this triton comes without cuobjdump")
    for kernel, types, constants, attributes, options in launched(monkeypatch)[part::PARTS]:
        source = ASTSource(kernel, types, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        report = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", binary], capture_output=True, text=True, check=True
        )
        use = {name: int(size) for name, size in re.findall(r"\b(STACK|LOCAL|SHARED|REG):(\d+)", report.stdout)}
        named = f"{kernel.__name__} with {constants}: {use}"
        assert use["STACK"] == use["LOCAL"] == 0, named
        assert use["SHARED"] + compiled.metadata.shared <= SHARED_MEMORY, named
