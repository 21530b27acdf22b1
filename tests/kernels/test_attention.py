"""attention and decode_attention against one softmax a token, written out, in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core import kernels
from rlhf_core.batch import offsets


def seen_by(t: int, own: tuple[int, int], prompt: tuple[int, int], causal: bool, window: int | None) -> list[int]:
    """The rows token t sees, its prompt's first."""
    rows = [*range(*prompt), *range(*own)]
    here = rows.index(t) if t in rows else 0
    near = [(abs(here - place) < (window or math.inf), place <= here or not causal) for place in range(len(rows))]
    return [row for row, (inside, before) in zip(rows, near, strict=True) if inside and before]


def loop(case: dict, groups: list[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (case[name].double() for name in "qkv")
    bounds = case["cu_seqlens"].tolist()
    own = list(pairwise(bounds))
    prompts = [(0, 0)] * len(own)
    place = 0
    for count in groups or []:
        prompts[place + 1 : place + 1 + count] = [own[place]] * count
        place += 1 + count
    scale = case.get("scale") or q.shape[2] ** -0.5
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -math.inf, dtype=torch.float64)
    for (a, b), prompt in zip(own, prompts, strict=True):
        for t in range(a, b):
            rows = seen_by(t, (a, b), prompt, case.get("causal", True), case.get("window"))
            for h in range(q.shape[1]):
                g = h // (q.shape[1] // k.shape[1])
                scores = scale * k[rows, g] @ q[t, h]
                out[t, h], lse[t, h] = scores.softmax(0) @ v[rows, g], scores.logsumexp(0)
    return out, lse


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict, list[int] | None]:
    groups = draw(st.sampled_from([None, [0], [2], [3, 0, 1], [1, 1]]))
    count = draw(st.integers(1, 4)) if groups is None else len(groups) + sum(groups)
    sizes = draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    tokens = sum(sizes) + draw(st.sampled_from([0, 3]))
    heads, key_heads = draw(st.sampled_from([(1, 1), (4, 2), (3, 1)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = {"q": heads, "k": key_heads, "v": key_heads}
    case = {n: torch.randn(tokens, h, 4, generator=random, dtype=torch.float64) for n, h in shapes.items()}
    case |= {"cu_seqlens": offsets(sizes), "causal": draw(st.booleans()), "window": draw(st.sampled_from([None, 1, 3]))}
    case["scale"] = draw(st.sampled_from([None, 0.3]))
    return case, groups


def call(case: dict, groups: list[int] | None, **options: bool):
    counts = None if groups is None else torch.tensor(groups, dtype=torch.int32)
    return kernels.attention(**case, responses_per_prompt=counts, **options)


@given(drawn=cases())
def test_equals_the_loop(drawn: tuple[dict, list[int] | None]) -> None:
    want, want_lse = loop(*drawn)
    found, lse = call(*drawn, return_lse=True)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(call(*drawn), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 2}])
@pytest.mark.parametrize("groups", [None, [2]])
def test_gradients(options: dict, groups: list[int] | None) -> None:
    q, k, v = (torch.randn(8, heads, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    case = {"cu_seqlens": offsets([3, 0, 4]), **options}  # the last row belongs to no sequence
    assert torch.autograd.gradcheck(lambda q, k, v: call({"q": q, "k": k, "v": v, **case}, groups), (q, k, v))


@pytest.mark.parametrize("options", [{}, {"causal": False}])
@pytest.mark.parametrize("sizes", [[3, 0, 4], [0, 0], []])
def test_rows_of_no_sequence(options: dict, sizes: list[int]) -> None:
    """0 and zero gradient, and NaN in them reaches nobody."""
    used = sum(sizes)
    q, k, v = (torch.randn(9, 2, 4) for _ in range(3))
    for tensor in (q, k, v):
        tensor[used:] = math.nan
        tensor.requires_grad_()
    out = kernels.attention(q, k, v, offsets(sizes), **options)
    assert not out[used:].any()
    out.sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad.isfinite().all() and not tensor.grad[used:].any()


@pytest.mark.parametrize("options", [{}, {"window": 2}])
def test_sequences_do_not_see_each_other(options: dict) -> None:
    q, k, v = (torch.randn(10, 2, 8) for _ in range(3))
    packed = kernels.attention(q, k, v, offsets([4, 6]), **options)
    alone = [kernels.attention(q[a:b], k[a:b], v[a:b], offsets([b - a]), **options) for a, b in ((0, 4), (4, 10))]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-6, atol=1e-6)
    k[:4] = math.nan
    assert torch.equal(kernels.attention(q, k, v, offsets([4, 6]), **options)[4:], packed[4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[127, 128, 129], [1, 300]])
def test_real_sizes(dtype: torch.dtype, sizes: list[int]) -> None:
    """Fast path and general path against each other at the size of a real head, forward and backward."""
    grads, outs = [], []
    given_ = [torch.randn(sum(sizes), heads, 64).to(dtype) for heads in (4, 2, 2)]
    for window in (None, 1000):  # a window wider than any sequence takes the general path
        leaves = [tensor.clone().requires_grad_() for tensor in given_]
        out = kernels.attention(*leaves, offsets(sizes), window=window)
        assert out.dtype == dtype
        grads.append(torch.autograd.grad(out.float().square().sum(), leaves))
        outs.append(out)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(*outs, rtol=tolerance, atol=tolerance)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_shared_prefix_equals_copies_of_it() -> None:
    """Forward, and the prompt's gradients add up."""
    prompt, first, second = 5, 3, 4
    q, k, v = (torch.randn(prompt + first + second, 2, 4, dtype=torch.float64) for _ in range(3))
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    shared = kernels.attention(
        *leaves, offsets([prompt, first, second]), responses_per_prompt=torch.tensor([2], dtype=torch.int32)
    )
    rows = [[*range(5), *range(5, 8)], [*range(5), *range(8, 12)]]
    copies = [kernels.attention(*(t[r] for t in leaves), offsets([len(r)])) for r in rows]
    want = torch.cat([copies[0], copies[1][5:]])
    torch.testing.assert_close(shared, want)
    weight = torch.randn_like(shared)
    for a, b in zip(
        torch.autograd.grad((shared * weight).sum(), leaves),
        torch.autograd.grad((want * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@st.composite
def steps(draw: st.DrawFn) -> dict:
    batch, slots = draw(st.integers(0, 4)), draw(st.integers(1, 5))
    heads, key_heads = draw(st.sampled_from([(1, 1), (4, 2)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def whole(low: int, high: int, size: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (size,), generator=random, dtype=torch.int32)

    case = {"q": normal(batch, heads, 4), "lengths": whole(0, slots, batch)}
    case |= {name: normal(batch, slots, key_heads, 4) for name in ("k_cache", "v_cache")}
    if draw(st.booleans()):
        case |= {name: normal(2, 3, key_heads, 4) for name in ("prefix_k", "prefix_v")}
        case["prefix_of"] = whole(-1, 1, batch)
        if draw(st.booleans()):
            case["prefix_lengths"] = whole(0, 3, 2)
    return case


@given(case=steps())
def test_decoding_equals_the_loop(case: dict) -> None:
    """What lies in unfilled slots, NaN here, is not read."""
    want = torch.zeros_like(case["q"])
    for b in range(len(want)):
        filled = int(case["lengths"][b])
        parts = [(case["k_cache"][b, :filled], case["v_cache"][b, :filled])]
        case["k_cache"][b, filled:] = case["v_cache"][b, filled:] = math.nan
        if "prefix_of" in case and (p := int(case["prefix_of"][b])) >= 0:
            length = int(case["prefix_lengths"][p]) if "prefix_lengths" in case else 3
            parts.append((case["prefix_k"][p, :length], case["prefix_v"][p, :length]))
        k, v = (torch.cat(rows) for rows in zip(*parts, strict=True))
        for h in range(want.shape[1]):
            g = h // (want.shape[1] // k.shape[1])
            if len(k):
                want[b, h] = (k[:, g] @ case["q"][b, h] / 2).softmax(0) @ v[:, g]
    torch.testing.assert_close(kernels.decode_attention(**case), want, rtol=1e-10, atol=1e-12)


def test_decoding_equals_attention_of_the_last_token() -> None:
    q, k, v = (torch.randn(7, heads, 8) for heads in (4, 2, 2))
    whole = kernels.attention(q, k, v, offsets([7]))
    step = kernels.decode_attention(q[-1:], k[None], v[None], torch.tensor([7], dtype=torch.int32))
    torch.testing.assert_close(step, whole[-1:])


GOOD = {name: torch.zeros(5, 2, 4) for name in "qkv"} | {"cu_seqlens": offsets([2, 3])}
STEP = {"q": torch.zeros(2, 2, 4), "lengths": torch.tensor([1, 3], dtype=torch.int32)}
STEP |= {name: torch.zeros(2, 3, 1, 4) for name in ("k_cache", "v_cache")}
PREFIX = {name: torch.zeros(1, 3, 1, 4) for name in ("prefix_k", "prefix_v")}


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("q", {"q": torch.zeros(5, 8)}),
        ("k", {"k": torch.zeros(4, 2, 4)}),
        ("k", {"k": torch.zeros(5, 3, 4), "v": torch.zeros(5, 3, 4)}),
        ("k", {"k": torch.zeros(5, 2, 4).bfloat16()}),
        ("v", {"v": torch.zeros(5, 1, 4)}),
        ("cu_seqlens", {"cu_seqlens": offsets([2, 4])}),
        ("cu_seqlens", {"cu_seqlens": torch.tensor([0, 3, 2], dtype=torch.int32)}),
        ("window", {"window": 0}),
        ("responses_per_prompt", {"responses_per_prompt": torch.tensor([2], dtype=torch.int32)}),
        ("responses_per_prompt", {"responses_per_prompt": torch.tensor([1])}),
        ("responses_per_prompt", {"responses_per_prompt": torch.tensor([-1, 1], dtype=torch.int32)}),
    ],
)
def test_bad_input_is_named(argument: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        kernels.attention(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("v_cache", {"v_cache": torch.zeros(2, 2, 1, 4)}),
        ("k_cache", {"k_cache": torch.zeros(2, 3, 3, 4), "v_cache": torch.zeros(2, 3, 3, 4)}),
        ("lengths", {"lengths": torch.tensor([1, 4], dtype=torch.int32)}),
        ("lengths", {"lengths": torch.tensor([1, 2])}),
        ("prefix_of", PREFIX),
        ("prefix_of", {**PREFIX, "prefix_of": torch.tensor([0, 1], dtype=torch.int32)}),
        ("prefix_lengths", {"prefix_lengths": torch.tensor([1], dtype=torch.int32)}),
    ],
)
def test_bad_decoding_input_is_named(argument: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected"):
        kernels.decode_attention(**{**STEP, **changes})
