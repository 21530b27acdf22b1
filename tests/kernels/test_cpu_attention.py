"""attention in C++ against its definition in float64.

Tiles are of 64 queries and keys, chunks of keys of 256 or more: lengths are around these.
"""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rlhf_core import kernels
from rlhf_core.batch import offsets

from .compiled import DTYPES, Found, counts, near, needs_cpu, poisoned, same, stridden, threads, to

pytestmark = needs_cpu("attention")

LENGTHS = [70, 0, 3, 130, 1, 16]
# Prompts with no response and of length 0, responses of length 0.
GROUPS = ([70, 9, 0, 65, 0, 17, 16, 1, 80], [2, 0, 1, 2])
LONG = ([700, 70, 0, 300, 513, 40, 129], [3, 1, 0])
ADVERSARIAL = [0, 1, 3, 127, 128, 129, 1023]
LARGE = (torch.float32, torch.bfloat16, torch.float64)  # float16 is computed in float32
TOKENS = ("q", "k", "v", "d_out", "d_lse")


def build(
    sizes: list[int], groups: list[int] | None = None, tail: int = 3, heads: tuple[int, int] = (2, 1), size: int = 32,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """A call and its gradients from above; NaN in the ``tail`` rows that belong to no sequence."""
    tokens = sum(sizes) + tail
    case = {"q": torch.randn(tokens, heads[0], size), "cu_seqlens": offsets(sizes), **options}
    case |= {name: torch.randn(tokens, heads[1], size) for name in "kv"}
    for name in "qkv":
        case[name][sum(sizes) :] = math.nan
    if groups is not None:
        case["responses_per_prompt"] = torch.tensor(groups, dtype=torch.int32)
    return case | {"d_out": torch.randn(tokens, heads[0], size), "d_lse": torch.randn(tokens, heads[0])}


def run(case: dict[str, Any], backend: str = "cpu", through: str = "both") -> Found:
    """Outputs and gradients; L is −inf exactly where no sequence is, and 0 here."""
    case = dict(case)
    upstream = {name: case.pop(name) for name in ("d_out", "d_lse")}
    leaves = [case[name].detach().requires_grad_() for name in "qkv"]
    with poisoned(backend == "cpu"):
        pair = kernels.attention(**case | dict(zip("qkv", leaves, strict=True)), return_lse=True, backend=backend)
        ways = [(x, d.to(x.dtype)) for x, d in zip(pair, upstream.values(), strict=True)]
        ways = {"both": ways, "out": ways[:1], "lse": ways[1:]}[through]
        outputs, weights = zip(*ways, strict=True)
        gradients = torch.autograd.grad(outputs, leaves, weights, materialize_grads=True)
    used, (out, lse) = int(case["cu_seqlens"][-1]), pair
    assert lse[used:].eq(-math.inf).all() and lse[:used].isfinite().all()
    rest = dict(zip(("d_q", "d_k", "d_v"), gradients, strict=True))
    assert all(not tensor[used:].any() for tensor in (out, *gradients))
    return {"out": out.detach(), "lse": lse.detach().nan_to_num(neginf=0.0)} | rest


def check(case: dict[str, Any], dtype: torch.dtype = torch.float32, through: str = "both") -> None:
    case = to(case, dtype)
    eager = [run(to(case, wide), "eager", through) for wide in (dtype, torch.float64)]
    near(run(case, "cpu", through), *eager, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 50, 2**31 - 1])
def test_every_option(causal: bool, window: int | None, shared: bool, dtype: torch.dtype) -> None:
    sizes, groups = GROUPS if shared else (LENGTHS, None)
    check(build(sizes, groups, causal=causal, window=window), dtype)


@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_sizes(size: int, dtype: torch.dtype) -> None:
    check(build([19, 0, 69, 3], [2, 0], size=size, window=40), dtype)
    check(build([130, 5], size=size, tail=0), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (4, 2), (6, 2), (8, 1), (80, 1), (130, 2)], ids=str)
def test_groups_of_heads(heads: tuple[int, int], dtype: torch.dtype) -> None:
    """Up to more than a tile has lanes, which then holds one token."""
    check(build([33, 9, 20], [1, 0], heads=heads), dtype)
    check(build([70, 4], heads=heads, causal=False, window=20), dtype)


@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 50}, {"window": 300, "causal": False}], ids=str)
def test_many_chunks_under_shared_prompts(options: dict[str, Any], dtype: torch.dtype) -> None:
    check(build(*LONG, **options), dtype)


@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 128}], ids=str)
def test_adversarial_lengths(options: dict[str, Any], dtype: torch.dtype) -> None:
    check(build(ADVERSARIAL, heads=(1, 1), **options), dtype)


def test_a_long_sequence() -> None:
    """Chunks longer than 256 keys."""
    for dtype in (torch.float32, torch.bfloat16):
        check(build([1500], heads=(2, 1), size=64), dtype)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("tail", [0, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_at_all(sizes: list[int], tail: int, dtype: torch.dtype) -> None:
    for options in ({}, {"window": 3, "causal": False}, {"groups": [len(sizes) - 1] if sizes else []}):
        found = run(to(build(sizes, tail=tail, **options), dtype))
        assert all(not tensor.any() for tensor in found.values())


@pytest.mark.parametrize("through", ["out", "lse"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_output_has_a_gradient(through: str, dtype: torch.dtype) -> None:
    check(build(*GROUPS), dtype, through)


def test_only_what_needs_a_gradient_gets_one() -> None:
    case = build([18, 90])
    case["d_lse"].zero_()
    q, k, v, given = case["q"], case["k"], case["v"].requires_grad_(), case["cu_seqlens"]
    (found,) = torch.autograd.grad(kernels.attention(q, k, v, given, backend="cpu"), v, case["d_out"])
    assert torch.equal(found, run(case)["d_v"])
    with torch.no_grad():
        assert not kernels.attention(q, k, v, given, backend="cpu").requires_grad


@pytest.mark.parametrize("scale", [0.0, -0.4, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales(scale: float, dtype: torch.dtype) -> None:
    check(build(*GROUPS, scale=scale), dtype)
    check(build(LENGTHS, scale=scale, causal=False, window=20), dtype)


def test_scores_far_from_zero() -> None:
    """Of thousands: the largest is subtracted before e is raised to them."""
    case = build(LENGTHS, scale=20.0)
    check(case)
    check(case | {"scale": -20.0})


@pytest.mark.parametrize("way", ["last", "rows", "shifted", "swapped"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [32, 96])
def test_strides(way: str, dtype: torch.dtype, size: int) -> None:
    """Not a bit changes."""
    case = to(build([80, 0, 9, 65], [1, 1], heads=(4, 2), size=size), dtype)
    case["d_lse"] = case["d_lse"].double() if dtype == torch.float64 else case["d_lse"].float()
    odd = {name: stridden(case[name])[way] for name in TOKENS}
    assert all(torch.equal(odd[name].nan_to_num(), case[name].nan_to_num()) for name in TOKENS)
    assert not odd["q"].is_contiguous() and not odd["d_out"].is_contiguous()
    same(run(case | odd), run(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_share_memory(dtype: torch.dtype) -> None:
    """One row for all tokens (a stride of 0), and rows that overlap."""
    case = to(build([80, 9, 65], [1, 0], tail=0, heads=(2, 1)), dtype)
    line = torch.randn(154 * 16 + 16, dtype=dtype)
    overlapping = line.as_strided((154, 1, 32), (16, 32, 1))
    for name, odd in (("k", case["k"][:1].expand(154, 1, 32)), ("v", overlapping), ("k", overlapping)):
        same(run(case | {name: odd}), run(case | {name: odd.contiguous()}))
    ones = torch.ones(1, dtype=dtype).expand(case["d_out"].shape)
    same(run(case | {"d_out": ones}), run(case | {"d_out": ones.contiguous()}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 5])
def test_nan_reaches_nobody_else(window: int | None, dtype: torch.dtype) -> None:
    """Of a sequence and of rows of none, also where they come from above."""
    case = to(build([77, 20, 9], window=window), dtype)
    dirty = {name: case[name].clone() for name in TOKENS}
    for tensor in dirty.values():
        tensor[77:97] = tensor[106:] = math.nan
    used = dict(case | dirty)
    d_out, d_lse = used.pop("d_out"), used.pop("d_lse")
    leaves = [used.pop(name).requires_grad_() for name in "qkv"]
    out, lse = kernels.attention(*leaves, **used, return_lse=True, backend="cpu")
    gradients = torch.autograd.grad((out, lse), leaves, (d_out, d_lse.to(lse.dtype)))
    clean = run(case)
    for found, wanted in zip((out, *gradients), (clean[n] for n in ("out", "d_q", "d_k", "d_v")), strict=True):
        for rows in (slice(0, 77), slice(97, None)):
            assert torch.equal(found[rows], wanted[rows])


def test_what_memory_held_before_does_not_matter() -> None:
    """Large outputs lie where earlier ones lay; here those are NaN."""
    case = build([1200, 300], heads=(8, 2), tail=40)
    first = run(case)
    dirty = {name: torch.full_like(case[name], math.nan).requires_grad_(name in "qkv") for name in TOKENS}
    kernels.attention(*(dirty[n] for n in "qkv"), case["cu_seqlens"], backend="cpu").backward(dirty["d_out"])
    same(run(case), first)


@pytest.mark.parametrize("groups", [None, [2], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": False, "window": 2}, {"scale": -0.3}], ids=str)
def test_gradcheck(groups: list[int] | None, options: dict[str, Any]) -> None:
    case = to(build([2, 0, 2], groups, tail=0, heads=(2, 1), **options), torch.float64)
    fixed = {name: x for name, x in case.items() if name not in TOKENS}

    def pair(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.attention(q, k, v, **fixed, return_lse=True, backend="cpu")

    assert torch.autograd.gradcheck(pair, [case[name].requires_grad_() for name in "qkv"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)], ids=str)
def test_no_matter_what_else_is_in_the_batch(shared: bool, dtype: torch.dtype, heads: tuple[int, int]) -> None:
    """A sequence's numbers, or those of a prompt and its responses, are the same in another order and alone."""
    sizes, groups = (
        ([*GROUPS[0], *LONG[0]], [*GROUPS[1], *LONG[1]]) if shared else ([129, 0, 3, 1023, 513, 1, 64], None)
    )
    case = to(build(sizes, groups, tail=0, heads=heads), dtype)
    members = [1] * len(sizes) if groups is None else [1 + count for count in groups]
    parts = [list(part) for part in torch.tensor(sizes).split(members)]
    rows = torch.arange(sum(sizes)).split([int(sum(part)) for part in parts])
    whole = run(case)
    for order in (list(range(len(parts)))[::-1], [3], [0, 4], [2, 1, 4, 0]):
        picked = torch.cat([rows[b] for b in order])
        part = case | {name: case[name][picked] for name in TOKENS}
        part["cu_seqlens"] = offsets([int(length) for b in order for length in parts[b]])
        if groups is not None:
            part["responses_per_prompt"] = torch.tensor([groups[b] for b in order], dtype=torch.int32)
        same(run(part), {name: tensor[picked] for name, tensor in whole.items()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_are_identical_whatever_the_threads(dtype: torch.dtype) -> None:
    case = to(build([270, 40, 0, 65], [1, 1]), dtype)
    first = run(case)
    for number in range(50):
        with threads(1 + number % 2):
            same(run(case), first)


@pytest.mark.parametrize("groups", [None, [1]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(groups: list[int] | None, dtype: torch.dtype) -> None:
    """Schema, shapes for tracing, autograd, torch.compile's own tests."""
    case = to(build([9, 5], groups, tail=0), dtype)
    q, k, v = (case[name].requires_grad_() for name in "qkv")
    given = (case["cu_seqlens"], case.get("responses_per_prompt"), 0.2, True, 4 if groups else None)
    torch.library.opcheck(torch.ops.rlhf.attention.default, (q, k, v, *given))
    fixed = [x.detach() for x in (q, k, v)]
    out, lse = torch.ops.rlhf.attention(*fixed, *given)
    for d_lse in (case["d_lse"], None):
        backward = (case["d_out"], d_lse, *fixed, out, lse, *given)
        torch.library.opcheck(torch.ops.rlhf.attention_backward.default, backward)


def test_compiles_whole_with_two_sizes() -> None:
    """One graph, forward and backward, whatever the size; L has its gradient there too."""
    counter = CompileCounterWithBackend("aot_eager")

    def call(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        out, lse = kernels.attention(q, k, v, cu_seqlens, window=6, return_lse=True, backend="cpu")
        return out.square().sum() + lse.sum()

    compiled, graphs = torch.compile(call, fullgraph=True, dynamic=True, backend=counter), []
    for sizes in ([4, 0, 9], [3, 80, 2, 10]):
        case = build(sizes, tail=0)
        leaves = [case[name].requires_grad_() for name in "qkv"]
        results = [f(*leaves, case["cu_seqlens"]) for f in (compiled, call)]
        found, wanted = ((loss, *torch.autograd.grad(loss, leaves)) for loss in results)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        graphs.append(counter.frame_count)
    assert graphs == [1, 1]


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("q", {"q": torch.zeros(5, 64)}),
        ("q", {"q": torch.zeros(5, 2, 32, dtype=torch.int32)}),
        ("k", {"k": torch.zeros(4, 2, 32)}),
        ("k", {"k": torch.zeros(5, 3, 32), "v": torch.zeros(5, 3, 32)}),
        ("k", {"k": torch.zeros(5, 0, 32), "v": torch.zeros(5, 0, 32)}),
        ("k", {"k": torch.zeros(5, 2, 32).bfloat16()}),
        ("v", {"v": torch.zeros(5, 2, 32).double()}),
        ("v", {"v": torch.zeros(5, 1, 32)}),
        ("cu_seqlens", {"cu_seqlens": counts(0, 2, 6)}),
        ("cu_seqlens", {"cu_seqlens": counts(1, 5)}),
        ("cu_seqlens", {"cu_seqlens": counts(0, 3, 2)}),
        ("cu_seqlens", {"cu_seqlens": counts(0, 9, 5)}),
        ("cu_seqlens", {"cu_seqlens": torch.tensor([0, 5])}),
        ("cu_seqlens", {"cu_seqlens": counts()}),
        ("window", {"window": 0}),
        ("window", {"window": -2}),
        ("responses_per_prompt", {"responses_per_prompt": counts(2)}),
        ("responses_per_prompt", {"responses_per_prompt": counts(-1, 1, 0)}),
        ("responses_per_prompt", {"responses_per_prompt": torch.tensor([1])}),
    ],
)
def test_bad_input_is_named(argument: str, changes: dict[str, Tensor]) -> None:
    case = {name: torch.zeros(5, 2, 32) for name in "qkv"} | {"cu_seqlens": counts(0, 2, 5)} | changes
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        kernels.attention(**case, backend="cpu")


def test_other_head_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend=cpu cannot compute attention: takes head sizes .*, not 48"):
        run(build([5], size=48))
    with pytest.raises(ValueError, match=r"takes head sizes .*, not 40"):
        run(build([5], size=40))
    run(build([5], size=48), None)


def test_no_heads() -> None:
    """In a process of its own: a division by zero would end this one."""
    script = """
import torch
from rlhf_core import kernels
q, k = torch.zeros(5, 0, 32), torch.zeros(5, 1, 32)
out = kernels.attention(q, k, k, torch.tensor([0, 5], dtype=torch.int32), backend="cpu")
assert out.shape == (5, 0, 32)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
