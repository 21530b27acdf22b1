"""Attention over packed sequences, with grouped heads, a window, and prompts shared by several responses.

N packed tokens, B sequences, Hq query heads, Hk key heads (Hq a multiple of Hk), D head size, T the longest sequence,
S the most keys one sequence sees. Position p counts from a sequence's own start; a response's continues its prompt's.

    O_t = Σ_s softmax_s(scale·q_t·k_s)·v_s  over the s that t sees: of its own sequence (and its prompt), and
    causal: p_s ≤ p_t;  window: |p_t − p_s| < window;  L_t = log Σ_s e^{scale·q_t·k_s}  (nats)

A shared prompt saves work as long as it is long against its responses: G responses of R tokens on a prompt of P take
P²/2 + G(PR + R²/2) pairs against G(P+R)²/2; 4.45× fewer at P 4096, R 256, G 8, but only 1.01× for long chains of
thought on short prompts. (The eager definition saves none: it gives every response its own copy of the keys.)

Vaswani et al. (2017), arXiv:1706.03762; grouped heads: arXiv:2305.13245; shared prefixes: arXiv:2402.05099
"""

from itertools import pairwise
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dispatch import Op


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, scale: float | None = None, causal: bool = True,
    window: int | None = None, responses_per_prompt: Tensor | None = None, return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, scale: float | None = None, causal: bool = True,
    window: int | None = None, responses_per_prompt: Tensor | None = None, return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    responses_per_prompt: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> "Tensor | tuple[Tensor, Tensor]":
    """Softmax attention inside each packed sequence; gradients reach ``q``, ``k`` and ``v``.

    Args:
        q: ``[N,Hq,D]``. Any D here; compiled backends take 32, 64, 96 and 128.
        k: ``[N,Hk,D]`` of q's dtype.
        v: ``[N,Hk,D]`` of q's dtype.
        cu_seqlens: ``[B+1]`` int32 offsets; rows after the last one belong to no sequence.
        scale: of the scores; D^{−1/2} by default.
        causal: a token sees those up to itself; otherwise all of its sequence.
        window: a token sees those less than this many positions away (transformers' sliding window).
        responses_per_prompt: ``[P]`` int32: the sequences are prompt₀, its responses, prompt₁, its responses, …
            (B = P + Σ); a response sees its prompt and itself.
        return_lse: also return L.
        backend: eager, or None for the configured choice.

    Returns:
        ``[N,Hq,D]`` of q's dtype; with ``return_lse`` also ``[N,Hq]`` float32 (float64 in, float64 out).
        Rows of no sequence give 0 (L −inf) and get no gradient.

    Raises:
        ValueError: a wrong shape, dtype, device or offset, named.
    """
    checks.floating(q, "q", (-1, -1, -1))
    tokens, heads, size = q.shape
    checks.floating(k, "k", (tokens, -1, size), q)
    checks.floating(v, "v", (tokens, k.shape[1], size), q)
    for name, tensor in {"k": k, "v": v}.items():
        checks.expect(tensor.dtype == q.dtype, name, str(q.dtype), tensor.dtype)
    groups = k.shape[1] > 0 and heads % k.shape[1] == 0
    checks.expect(groups, "k", f"a number of heads that divides q's {heads}", k.shape[1])
    checks.offsets(cu_seqlens, like=q)
    checks.expect(window is None or window > 0, "window", "a number > 0", window)
    if responses_per_prompt is not None:
        checks.shaped(responses_per_prompt, "responses_per_prompt", (-1,), q)
        integral = responses_per_prompt.dtype == torch.int32
        checks.expect(integral, "responses_per_prompt", "int32", responses_per_prompt.dtype)
    scale = size**-0.5 if scale is None else scale
    out, lse = OP(backend, q, q, k, v, cu_seqlens, scale, causal, window, responses_per_prompt, return_lse)
    return (out, lse) if return_lse and lse is not None else out


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    responses_per_prompt: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The definition: sequences side by side in ``[B,T]``, their keys in ``[B,S]``."""
    offsets = checks.host_offsets(cu_seqlens, len(q), tail=True)
    own = list(pairwise(offsets))
    if offsets[-1] == 0:
        return _nothing(q, k, v), q.new_full(q.shape[:2], -torch.inf, dtype=checks.statistics_dtype(q))
    if causal and window is None and responses_per_prompt is None and not return_lse:
        return _causal(q, k, v, own, scale), None
    prompts = _prompts(own, responses_per_prompt)
    out, lse = _general(q, k, v, own, prompts, scale, causal, window)
    return out, lse


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros of q's shape with zero gradients, whatever the inputs hold."""
    never = torch.zeros((), dtype=torch.bool, device=q.device)
    return torch.where(never, q, 0.0) + sum(torch.where(never, other, 0.0).sum() for other in (k, v))


def _causal(q: Tensor, k: Tensor, v: Tensor, own: list[tuple[int, int]], scale: float) -> Tensor:
    """By torch's fused kernel: behind a causal mask, padding to the right is never seen."""
    longest = max(end - begin for begin, end in own)
    slots = _slots(own, longest, q.device)

    def padded(rows: Tensor) -> Tensor:
        flat = rows.new_zeros(len(own) * longest, *rows.shape[1:])
        batch = flat.index_copy(0, slots, rows[: len(slots)])
        return batch.view(len(own), longest, *rows.shape[1:]).transpose(1, 2)

    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        padded(q), padded(k), padded(v), is_causal=True, scale=scale, enable_gqa=grouped
    )
    return _back(out.transpose(1, 2).flatten(0, 1), slots, len(q), 0.0)


def _general(
    q: Tensor, k: Tensor, v: Tensor, own: list[tuple[int, int]], prompts: list[tuple[int, int]], scale: float,
    causal: bool, window: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """By an explicit softmax in float32; returns L too."""
    dtype = checks.statistics_dtype(q)
    queries, keys, seen = _index(own, prompts, len(q), causal, window, q.device)

    def gathered(rows: Tensor, index: Tensor) -> Tensor:  # index N is a row of zeros
        found = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, index.flatten())
        return found.view(*index.shape, *rows.shape[1:]).to(dtype)

    heads = (k.shape[1], q.shape[1] // k.shape[1])
    grouped = gathered(q, queries).view(*queries.shape, *heads, q.shape[2])  # [B,T,Hk,G,D]
    scores = torch.einsum("btkgd,bskd->bkgts", grouped, gathered(k, keys)) * scale
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1)
    out = torch.einsum("bkgts,bskd->btkgd", (scores - lse[..., None]).exp(), gathered(v, keys))
    slots = _slots(own, queries.shape[1], q.device)
    rows = out.flatten(2, 3).flatten(0, 1).to(q.dtype)
    row_lse = lse.flatten(1, 2).transpose(1, 2).flatten(0, 1)
    return _back(rows, slots, len(q), 0.0), _back(row_lse, slots, len(q), -torch.inf)


def _index(
    own: list[tuple[int, int]], prompts: list[tuple[int, int]], tokens: int, causal: bool, window: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rows of the queries ``[B,T]`` and keys ``[B,S]`` (N where none is), and which key a query sees ``[B,T,S]``."""
    begin, end = torch.tensor(own, device=device).T[:, :, None]
    prompt, prompt_end = torch.tensor(prompts, device=device).T[:, :, None]
    before, length = prompt_end - prompt, end - begin
    t = torch.arange(int(length.max()), device=device)
    s = torch.arange(int((before + length).max()), device=device)
    queries = torch.where(t < length, begin + t, tokens)
    keys = torch.where(s < before, prompt + s, begin + s - before)
    keys = torch.where(s < before + length, keys, tokens)
    distance = (before + t)[:, :, None] - s
    seen = (s < before + length)[:, None, :].expand_as(distance)
    if causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance.abs() < window)
    # A padded query has to see something, or its softmax is NaN and so are gradients; it sees one key, and is dropped.
    return queries, keys, seen | ((t >= length)[:, :, None] & (s == 0))


def _prompts(own: list[tuple[int, int]], responses_per_prompt: Tensor | None) -> list[tuple[int, int]]:
    """The rows of each sequence's shared prompt; an empty range where it has none."""
    if responses_per_prompt is None:
        return [(0, 0)] * len(own)
    counts: list[int] = responses_per_prompt.tolist()
    checks.expect(all(count >= 0 for count in counts), "responses_per_prompt", "numbers ≥ 0", min(counts, default=0))
    total = len(counts) + sum(counts)
    checks.expect(total == len(own), "responses_per_prompt", f"prompts and responses to be {len(own)}", total)
    prompts: list[tuple[int, int]] = []
    for count in counts:
        prompts += [(0, 0)] + [own[len(prompts)]] * count
    return prompts


def _slots(own: list[tuple[int, int]], longest: int, device: torch.device) -> Tensor:
    """Where each row of a sequence lies in ``[B·T]``."""
    begin, end = torch.tensor(own, device=device).T
    shift = torch.arange(len(own), device=device) * longest - begin
    return torch.arange(own[-1][1], device=device) + torch.repeat_interleave(shift, end - begin)


def _back(padded: Tensor, slots: Tensor, tokens: int, empty: float) -> Tensor:
    """``[B·T,…]`` to ``[N,…]``; rows of no sequence are ``empty``."""
    rows = padded.index_select(0, slots)
    tail = rows.new_full((tokens - len(slots), *rows.shape[1:]), empty)
    return torch.cat([rows, tail]) if len(tail) else rows


OP = Op("attention", _eager)
