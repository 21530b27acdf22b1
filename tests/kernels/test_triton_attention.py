"""attention and decode_attention in Triton, interpreted (``TRITON_INTERPRET=1``), against their definitions in float64.

Tiles are made small, so that short sequences have many; some tests keep those of a GPU.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rlhf_core import kernels
from rlhf_core.batch import offsets

from .cases import compare

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from rlhf_core.kernels.triton import attention, attention_backward, attention_tiles, decode_attention

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, where a GPU gives infinity
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # triton 3.6 with numpy 2.3
]

LENGTHS = [17, 0, 3, 33, 1, 16]
GROUPS = ([20, 9, 0, 5, 0, 17, 16, 1, 18], [2, 0, 1, 2])  # a prompt with no response, one of length 0, a response of 0
NARROW = (torch.bfloat16, torch.float16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 or 32 rows, each kernel others; a few sequences, prompts and slots at a time."""
    blocks = {"BLOCKS": (16, 16), "QUERY_BLOCKS": (16, 8), "KEY_BLOCKS": (32, 16)}
    for name, (tile, step) in blocks.items():
        module = attention if name == "BLOCKS" else attention_backward
        made = attention_tiles.Blocks(tile, step, 4, 2)
        monkeypatch.setattr(module, name, defaultdict(lambda made=made: made))
    monkeypatch.setattr(attention_backward, "DELTA_TILE", 16)
    monkeypatch.setattr(attention_tiles, "PLAN_BLOCK", 4)
    monkeypatch.setattr(decode_attention, "SPLIT", 16)
    monkeypatch.setattr(decode_attention, "STEP", {2: 8, 4: 8})


@contextmanager
def poisoned(wanted: bool = True) -> Iterator[None]:
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(wanted)
    yield
    torch.use_deterministic_algorithms(False)


def build(
    sizes: list[int], groups: list[int] | None = None, tail: int = 3, heads: tuple[int, int] = (2, 1), size: int = 32,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    tokens = sum(sizes) + tail
    case = {"q": torch.randn(tokens, heads[0], size), "cu_seqlens": offsets(sizes), **options}
    case |= {name: torch.randn(tokens, heads[1], size) for name in "kv"}
    if groups is not None:
        case["responses_per_prompt"] = torch.tensor(groups, dtype=torch.int32)
    return case | {"d_out": torch.randn(tokens, heads[0], size), "d_lse": torch.randn(tokens, heads[0])}


def to(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {n: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in case.items()}


def run(case: dict[str, Any], backend: str) -> dict[str, Tensor]:
    """Outputs, and gradients for upstream ones of both; L is −inf exactly where no sequence is, and 0 here."""
    case = dict(case)
    d_out, d_lse = case.pop("d_out"), case.pop("d_lse")
    leaves = [case[name].detach().requires_grad_() for name in "qkv"]
    with poisoned(backend == "triton"):
        out, lse = kernels.attention(**case | dict(zip("qkv", leaves, strict=True)), return_lse=True, backend=backend)
        gradients = torch.autograd.grad((out, lse), leaves, (d_out.to(out.dtype), d_lse.to(lse.dtype)))
    used = int(case["cu_seqlens"][-1])
    assert lse[used:].eq(-math.inf).all() and lse[:used].isfinite().all()
    rest = dict(zip(("d_q", "d_k", "d_v"), gradients, strict=True))
    return {"out": out.detach(), "lse": lse.detach().nan_to_num(neginf=0.0)} | rest


def slack(dtype: torch.dtype) -> float:
    """Of the largest number: O and P are rounded to a narrow dtype between products, where the definition's are not."""
    return torch.finfo(dtype).eps / 4 if dtype in NARROW else 1e-6


def check(case: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    case = to(case, dtype)
    compare(run(case, "triton"), run(case, "eager"), run(to(case, torch.float64), "eager"), slack(dtype))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 2**31 - 1])
def test_every_option(causal: bool, window: int | None, shared: bool) -> None:
    sizes, groups = GROUPS if shared else (LENGTHS, None)
    check(build(sizes, groups, heads=(1, 1), causal=causal, window=window, scale=0.3 if causal else None))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
def test_sizes_and_dtypes(size: int, dtype: torch.dtype) -> None:
    check(build([9, 0, 19, 3], [2, 0], size=size, window=7), dtype)
    check(build([18, 5], size=size, tail=0), dtype)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (3, 3)], ids=str)
def test_groups_of_heads(heads: tuple[int, int]) -> None:
    check(build([18, 9], [1], heads=heads))


@pytest.mark.parametrize("sizes", [[129, 0, 1, 3], [127, 128]], ids=str)
def test_tiles_of_a_gpu(sizes: list[int]) -> None:
    for size, dtype in ((64, torch.float32), (128, torch.bfloat16)):
        check(build(sizes, [len(sizes) - 1], heads=(1, 1), size=size), dtype)
    check(build(sizes, heads=(1, 1), window=40), torch.float16)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("tail", [0, 20])
def test_nothing_at_all(sizes: list[int], tail: int) -> None:
    for options in ({}, {"window": 3, "causal": False}, {"groups": [len(sizes) - 1] if sizes else []}):
        found = run(build(sizes, tail=tail, **options), "triton")
        assert all(not tensor.any() for tensor in found.values())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shared", [False, True])
def test_no_matter_what_else_is_in_the_batch(shared: bool) -> None:
    """A sequence's numbers, or those of a prompt and its responses, are the same in another order and alone."""
    sizes, groups = GROUPS if shared else (LENGTHS, None)
    case = build(sizes, groups, tail=0, heads=(1, 1))
    members = [1] * len(sizes) if groups is None else [1 + count for count in groups]
    rows = torch.arange(sum(sizes)).split([sum(s) for s in _parts(sizes, members)])
    whole = run(case, "triton")
    same(run(case, "triton"), whole)
    for order in ([3, 1, 0, 2], [3]):
        picked = torch.cat([rows[b] for b in order])
        tokens = ("q", "k", "v", "d_out", "d_lse")
        part = case | {name: case[name][picked] for name in tokens}
        part["cu_seqlens"] = offsets([length for b in order for length in _parts(sizes, members)[b]])
        if groups is not None:
            part["responses_per_prompt"] = torch.tensor([groups[b] for b in order], dtype=torch.int32)
        same(run(part, "triton"), {name: tensor[picked] for name, tensor in whole.items()})


def _parts(sizes: list[int], members: list[int]) -> list[list[int]]:
    found, rest = [], list(sizes)
    for count in members:
        found.append(rest[:count])
        rest = rest[count:]
    return found


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("window", [None, 5])
def test_nan_reaches_nobody_else(window: int | None) -> None:
    """Of a sequence and of rows of none, also where they come from above."""
    case = build([17, 20, 9], window=window)
    dirty = {name: x.clone() for name, x in case.items() if isinstance(x, Tensor)}
    for name in ("q", "k", "v", "d_out", "d_lse"):
        dirty[name][17:37] = dirty[name][46:] = math.nan
    used = dict(case | dirty)
    d_out, d_lse = used.pop("d_out"), used.pop("d_lse")
    leaves = [used.pop(name).requires_grad_() for name in "qkv"]
    out, lse = kernels.attention(*leaves, **used, return_lse=True, backend="triton")
    gradients = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
    clean = run(case, "triton")
    for found, wanted in zip((out, *gradients), (clean[n] for n in ("out", "d_q", "d_k", "d_v")), strict=True):
        for rows in (slice(0, 17), slice(37, 46), slice(46, None)):
            assert torch.equal(found[rows], wanted[rows])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("outputs", [(0,), (1,)], ids=["out", "lse"])
def test_one_output_has_a_gradient(outputs: tuple[int, ...]) -> None:
    case, found = build([18, 9]), {}
    upstream = (case.pop("d_out"), case.pop("d_lse"))
    for backend, dtype in (("triton", torch.float32), ("eager", torch.float32), ("eager", torch.float64)):
        leaves = [case[name].to(dtype).requires_grad_() for name in "qkv"]
        results = kernels.attention(*leaves, case["cu_seqlens"], return_lse=True, backend=backend)
        (which,) = outputs
        weight = upstream[which].to(dtype)
        gradients = torch.autograd.grad(results[which], leaves, weight, materialize_grads=True)
        found[backend, dtype] = dict(zip(("d_q", "d_k", "d_v"), gradients, strict=True))
    compare(*found.values())


@pytest.mark.usefixtures("small")
def test_only_what_needs_a_gradient_gets_one() -> None:
    case = build([18, 9])
    v = case["v"].requires_grad_()
    out = kernels.attention(case["q"], case["k"], v, case["cu_seqlens"], backend="triton")
    (found,) = torch.autograd.grad(out, v, case["d_out"])
    case["d_lse"].zero_()
    assert torch.equal(found, run(case, "triton")["d_v"])
    with torch.no_grad():
        assert not kernels.attention(case["q"], case["k"], v, case["cu_seqlens"], backend="triton").requires_grad


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [32, 96])
def test_strides(size: int) -> None:
    """Not a bit changes."""
    case = build([18, 0, 9], [1, 0], heads=(2, 2), size=size, tail=1)
    fused = torch.cat([case["q"], case["k"]], 2)
    odd = {"q": fused[..., :size], "k": fused[..., size:], "v": torch.stack([case["v"]] * 2, 3)[..., 0]}
    odd["d_out"] = torch.ones(1).expand(case["d_out"].shape)
    case["d_out"] = odd["d_out"].contiguous()
    odd["d_lse"] = case["d_lse"].t().contiguous().t()
    for name, tensor in odd.items():
        assert torch.equal(tensor, case[name]) and (name == "d_lse" or not tensor.is_contiguous())
    same(run(case | odd, "triton"), run(case, "triton"))


@pytest.mark.usefixtures("small")
def test_places_past_int32() -> None:
    """The third head lies 2³¹ numbers on; of that memory only what is touched becomes real."""
    sizes, step = [18, 9], 2**30 + 16
    base = torch.empty(2 * step + 27 * 32, dtype=torch.float16)
    far = base.as_strided((27, 3, 32), (32, step, 1)).copy_(torch.randn(27, 3, 32))
    given, given_too = (offsets(sizes), None, 0.2, True, None), (far, far.contiguous())
    found = [attention.attention(x, x, x, *given) for x in given_too]
    assert far.stride(1) == step and torch.equal(found[0][0], found[1][0])
    backward = [
        attention_backward.attention_backward(x, None, *outputs, x, x, x, *given)
        for x, outputs in zip(given_too, found, strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*backward, strict=True))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("counts", [None, [1], [5, -3], []], ids=str)
def test_offsets_out_of_bounds_touch_nothing_out_of_bounds(counts: list[int] | None) -> None:
    """A GPU cannot check them without synchronising. The numbers past the end are what must not be read."""
    held = torch.full((40, 2, 32), math.nan)
    x = held[:20].copy_(torch.randn(20, 2, 32))
    counts = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    for bad in ([0, 9, 30, 50], [-7, 9, 20, 3], [0, 20, 0, 20]):
        given = (torch.tensor(bad, dtype=torch.int32), counts, 0.2, True, None)
        out, lse = attention.attention(x, x, x, *given)
        assert out[:9].isfinite().all()
        attention_backward.attention_backward(x, None, out, lse, x, x, x, *given)
        assert held[20:].isnan().all()


def test_refusals() -> None:
    for change, reason in (
        ({"size": 48}, "takes head sizes 32, 64, 96, 128, not 48"),
        ({"scale": 0.0}, "takes a scale > 0, not 0.0"),
    ):
        case = build([5], **change)
        with pytest.raises(ValueError, match=reason):
            run(case, "triton")
    with pytest.raises(ValueError, match="float64"):
        run(to(build([5]), torch.float64), "triton")
    with pytest.raises(ValueError, match="takes head sizes"):
        step = {name: torch.zeros(2, 3, 1, 48) for name in ("k_cache", "v_cache")}
        kernels.decode_attention(torch.zeros(2, 1, 48), **step, lengths=offsets([1]), backend="triton")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("groups", [None, [1]])
def test_opcheck(groups: list[int] | None) -> None:
    """Schema, shapes for tracing, autograd, torch.compile's own tests."""
    case = build([9, 5], groups)
    q, k, v = (case[name].requires_grad_() for name in "qkv")
    given = (case["cu_seqlens"], case.get("responses_per_prompt"), 0.2, True, 4 if groups else None)
    torch.library.opcheck(torch.ops.rlhf_triton.attention.default, (q, k, v, *given))
    fixed = [x.detach() for x in (q, k, v)]
    out, lse = attention.attention(*fixed, *given)
    backward = (case["d_out"], case["d_lse"].t(), out, lse, *fixed, *given)
    torch.library.opcheck(torch.ops.rlhf_triton.attention_backward.default, backward)


@pytest.mark.usefixtures("small")
def test_compiles_whole_with_two_sizes() -> None:
    """One graph, forward and backward, whatever the size; L has its gradient there too."""
    counter = CompileCounterWithBackend("aot_eager")

    def call(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        out, lse = kernels.attention(q, k, v, cu_seqlens, window=6, return_lse=True, backend="triton")
        return out.square().sum() + lse.sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for sizes in ([4, 0, 9], [3, 8, 2, 10]):
        case = build(sizes, tail=0)
        leaves = [case[name].requires_grad_() for name in "qkv"]
        results = [f(*leaves, case["cu_seqlens"]) for f in (compiled, call)]
        found, wanted = ((loss, *torch.autograd.grad(loss, leaves)) for loss in results)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        graphs.append(counter.frame_count)
    assert graphs == [1, 1]


def step(
    lengths: list[int], slots: int, prefix: tuple[list[int], int] | None = None,
    prefix_lengths: list[int] | None = None, heads: tuple[int, int] = (4, 2), size: int = 32,
) -> dict[str, Any]:  # fmt: skip
    """A decoding step; NaN in the slots that are not filled. prefix: the prompt of each sequence, and L."""

    def filled(counts: list[int], most: int) -> Tensor:
        rows = torch.randn(len(counts), most, heads[1], size)
        rows[torch.arange(most) >= torch.tensor(counts, dtype=torch.int64)[:, None]] = math.nan
        return rows

    case = {"q": torch.randn(len(lengths), heads[0], size), "lengths": torch.tensor(lengths, dtype=torch.int32)}
    case |= {name: filled(lengths, slots) for name in ("k_cache", "v_cache")}
    if prefix is not None:
        prompts, longest = prefix
        counts = prefix_lengths or [longest] * (max(prompts) + 1)
        case |= {name: filled(counts, longest) for name in ("prefix_k", "prefix_v")}
        case["prefix_of"] = torch.tensor(prompts, dtype=torch.int32)
        if prefix_lengths is not None:
            case["prefix_lengths"] = torch.tensor(prefix_lengths, dtype=torch.int32)
    return case


def decode(case: dict[str, Any], backend: str = "triton") -> dict[str, Tensor]:
    with poisoned(backend == "triton"):
        return {"out": kernels.decode_attention(**case, backend=backend)}


STEPS: dict[str, dict[str, Any]] = {
    "no prompts": {"lengths": [0, 1, 15, 16, 17, 40], "slots": 40},
    "prompts": {"lengths": [5, 0, 33, 0, 16], "slots": 33, "prefix": ([1, 0, -1, -1, 1], 35)},
    "prompts of lengths": {"lengths": [5, 0, 3, 0, 16], "slots": 20, "prefix": ([2, 0, 1, -1, 1], 35)}
    | {"prefix_lengths": [35, 16, 0]},
    "three heads": {"lengths": [3, 2], "slots": 3, "prefix": ([0, 0], 4), "heads": (3, 1)},
    "twenty heads": {"lengths": [3, 2], "slots": 3, "heads": (20, 1)},
    "no slots": {"lengths": [0, 0], "slots": 0},
    "prompts alone": {"lengths": [0, 0], "slots": 0, "prefix": ([0, -1], 17)},
    "no prompt at all": {"lengths": [4], "slots": 4, "prefix": ([-1], 0)},
    "no sequence": {"lengths": [], "slots": 4},
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("given", list(STEPS.values()), ids=list(STEPS))
def test_decoding(given: dict[str, Any]) -> None:
    case = step(**given)
    compare(decode(case), decode(case, "eager"), decode(to(case, torch.float64), "eager"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
def test_decoding_sizes_and_dtypes(size: int, dtype: torch.dtype) -> None:
    case = to(step([17, 3, 0], 18, ([0, -1, 1], 20), [20, 5], size=size), dtype)
    compare(decode(case), decode(case, "eager"), decode(to(case, torch.float64), "eager"), slack(dtype))


def test_decoding_with_splits_of_a_gpu() -> None:
    case = step([300, 1, 256], 300, ([0, 0, -1], 257), heads=(2, 1))
    compare(decode(case), decode(case, "eager"), decode(to(case, torch.float64), "eager"))


@pytest.mark.usefixtures("small")
def test_decoding_does_not_depend_on_the_batch() -> None:
    """Nor on how large the cache is, nor on its strides."""
    case = step([5, 0, 33, 17], 33, ([1, 0, -1, 1], 35))
    whole = decode(case)["out"]
    for order in ([3, 1, 0, 2], [0], [2, 0]):
        part = case | {name: case[name][order] for name in ("q", "k_cache", "v_cache", "lengths", "prefix_of")}
        assert torch.equal(decode(part)["out"], whole[order])
    larger = {name: torch.nn.functional.pad(case[name], (0, 0, 0, 0, 0, 20)) for name in ("k_cache", "v_cache")}
    assert torch.equal(decode(case | larger)["out"], whole)
    odd = {n: case[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("k_cache", "v_cache", "prefix_k")}
    odd |= {n: torch.stack([case[n]] * 2, -1)[..., 0] for n in ("q", "prefix_v")}
    assert torch.equal(decode(case | odd)["out"], whole)


@pytest.mark.usefixtures("small")
def test_decoding_out_of_bounds_touches_nothing_out_of_bounds() -> None:
    """What a GPU cannot check without synchronising is made harmless: as if it were the nearest right number."""
    case = step([20, 20], 20, ([1, 0], 18))
    right = decode(case)["out"]
    given = (case[name] for name in ("prefix_k", "prefix_v"))
    bad = (torch.tensor([9, 0], dtype=torch.int32), torch.tensor([99, 18], dtype=torch.int32))
    found = decode_attention.decode_attention(
        case["q"], case["k_cache"], case["v_cache"], torch.tensor([99, 20], dtype=torch.int32), *given, *bad, 32**-0.5
    )
    assert torch.equal(found, right)


@pytest.mark.usefixtures("small")
def test_decoding_is_an_op() -> None:
    case = step([5, 3], 6, ([0, -1], 4))
    names = ("q", "k_cache", "v_cache", "lengths", "prefix_k", "prefix_v", "prefix_of")
    given = (*(case[name].nan_to_num() for name in names), None, 0.2)
    torch.library.opcheck(torch.ops.rlhf_triton.decode_attention.default, given)
    compiled = torch.compile(kernels.decode_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(**case, backend="triton"), decode(case)["out"])
