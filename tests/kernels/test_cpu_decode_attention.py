"""decode_attention in C++ against its definition in float64; blocks are of 64 keys, tiles of 64 queries."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import kernels

from .compiled import DTYPES, Found, counts, near, needs_cpu, poisoned, stridden, threads, to

pytestmark = needs_cpu("decode_attention")


def step(
    lengths: list[int], slots: int, prefix: tuple[list[int], int] | None = None,
    prefix_lengths: list[int] | None = None, heads: tuple[int, int] = (4, 2), size: int = 32,
) -> dict[str, Any]:  # fmt: skip
    """A decoding step; NaN in the slots that are not filled. prefix: the prompt of each sequence, and L."""

    def filled(filled_slots: list[int], most: int) -> Tensor:
        rows = torch.randn(len(filled_slots), most, heads[1], size)
        rows[torch.arange(most) >= torch.tensor(filled_slots, dtype=torch.int64)[:, None]] = math.nan
        return rows

    case = {"q": torch.randn(len(lengths), heads[0], size), "lengths": counts(*lengths)}
    case |= {name: filled(lengths, slots) for name in ("k_cache", "v_cache")}
    if prefix is not None:
        prompts, longest = prefix
        held = prefix_lengths or [longest] * (max(prompts) + 1)
        case |= {name: filled(held, longest) for name in ("prefix_k", "prefix_v")}
        case["prefix_of"] = counts(*prompts)
        if prefix_lengths is not None:
            case["prefix_lengths"] = counts(*prefix_lengths)
    return case


def decode(case: dict[str, Any], backend: str = "cpu") -> Found:
    with poisoned(backend == "cpu"):
        return {"out": kernels.decode_attention(**case, backend=backend)}


def check(case: dict[str, Any], dtype: torch.dtype) -> None:
    case = to(case, dtype)
    near(decode(case), decode(case, "eager"), decode(to(case, torch.float64), "eager"), dtype)


MIXED: dict[str, Any] = {"lengths": [5, 0, 133, 0, 64, 7], "slots": 133, "prefix": ([1, 0, -1, -1, 1, 0], 165)}
STEPS: dict[str, dict[str, Any]] = {
    "no prompts": {"lengths": [0, 1, 63, 64, 65, 200], "slots": 200},
    "prompts": MIXED,
    "prompts of lengths": MIXED | {"prefix": ([2, 0, 1, -1, 1, 0], 165), "prefix_lengths": [165, 16, 0]},
    "many of one prompt": {"lengths": [n % 9 for n in range(70)], "slots": 8, "prefix": ([0] * 70, 300)},
    "three heads": {"lengths": [3, 2], "slots": 3, "prefix": ([0, 0], 4), "heads": (3, 1)},
    "eighty heads": {"lengths": [3, 70], "slots": 70, "prefix": ([0, 0], 4), "heads": (80, 1)},
    "no slots": {"lengths": [0, 0], "slots": 0},
    "prompts alone": {"lengths": [0, 0], "slots": 0, "prefix": ([0, -1], 17)},
    "no prompt at all": {"lengths": [4], "slots": 4, "prefix": ([-1], 0)},
    "no sequence": {"lengths": [], "slots": 4},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", list(STEPS.values()), ids=list(STEPS))
def test_decoding(given: dict[str, Any], dtype: torch.dtype) -> None:
    check(step(**given), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "scale"), [(32, 0.0), (64, -0.3), (96, 0.5), (128, None)])
def test_decoding_sizes_and_scales(size: int, scale: float | None, dtype: torch.dtype) -> None:
    check(step(**MIXED, size=size) | {"scale": scale}, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (6, 2), (130, 2)], ids=str)
def test_decoding_does_not_depend_on_the_batch(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    """Nor on how many share a prompt, how large the cache is, its strides, or how many threads there are."""
    lengths = [n * 7 % 133 for n in range(74)]
    case = to(step(lengths, 133, ([1, 0, -1, 1, *[0] * 70], 165), heads=heads), dtype)
    whole = decode(case)["out"]
    for order in (list(range(74))[::-1], [0], [2, 0, 73, 3]):
        part = case | {name: case[name][order] for name in ("q", "k_cache", "v_cache", "lengths", "prefix_of")}
        assert torch.equal(decode(part)["out"], whole[order])
    larger = {name: torch.nn.functional.pad(case[name], (0, 0, 0, 0, 0, 20)) for name in ("k_cache", "v_cache")}
    assert torch.equal(decode(case | larger)["out"], whole)
    caches = ("k_cache", "v_cache", "prefix_k", "prefix_v")
    heads_first = {name: case[name].transpose(1, 2).contiguous().transpose(1, 2) for name in caches}
    for odd in (heads_first, *({n: stridden(case[n])[way] for n in ("q", *caches)} for way in ("last", "rows"))):
        assert not odd["k_cache"].is_contiguous()
        assert torch.equal(decode(case | odd)["out"], whole)
    for number in range(6):
        with threads(1 + number % 2):
            assert torch.equal(decode(case)["out"], whole)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("k_cache", {"k_cache": torch.zeros(2, 3, 3, 32), "v_cache": torch.zeros(2, 3, 3, 32)}),
        ("v_cache", {"v_cache": torch.zeros(2, 2, 1, 32)}),
        ("v_cache", {"v_cache": torch.zeros(2, 3, 1, 32).bfloat16()}),
        ("lengths", {"lengths": counts(1, 4)}),
        ("lengths", {"lengths": counts(-1, 2)}),
        ("lengths", {"lengths": torch.tensor([1, 2])}),
        ("prefix_of", {"prefix_of": counts(0, 1)}),
        ("prefix_of", {"prefix_of": counts(-2, 0)}),
        ("prefix_of", {"prefix_of": None}),
        ("prefix_lengths", {"prefix_lengths": counts(5)}),
        ("prefix_v", {"prefix_v": torch.zeros(1, 3, 1, 32)}),
    ],
)
def test_bad_decoding_input_is_named(argument: str, changes: dict[str, Tensor]) -> None:
    case = step([1, 3], 3, ([0, -1], 4), heads=(2, 1)) | changes
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.decode_attention(**case, backend="cpu")


def test_decoding_is_an_op() -> None:
    case = step([5, 3], 6, ([0, -1], 4))
    names = ("q", "k_cache", "v_cache", "lengths", "prefix_k", "prefix_v", "prefix_of")
    given = (*(case[name].nan_to_num() for name in names), None, 0.2)
    torch.library.opcheck(torch.ops.rlhf.decode_attention.default, given)
    compiled = torch.compile(kernels.decode_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ([5, 3], [64, 0, 9]):
        case = step(sizes, max(sizes), ([0, -1, 0][: len(sizes)], 4))
        assert torch.equal(compiled(**case, backend="cpu"), decode(case)["out"])


def test_other_head_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend=cpu cannot compute decode_attention: takes head sizes .*, not 48"):
        decode(step([5], 5, size=48))
    assert decode(step([5], 5, size=48), "eager")["out"].isfinite().all()


def test_no_heads() -> None:
    """In a process of its own: a division by zero would end this one."""
    script = """
import torch
from rlhf_core import kernels
cache, lengths = torch.zeros(2, 3, 1, 32), torch.tensor([1, 2], dtype=torch.int32)
assert kernels.decode_attention(torch.zeros(2, 0, 32), cache, cache, lengths, backend="cpu").shape == (2, 0, 32)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
