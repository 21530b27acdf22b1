"""Attention of one new token a sequence over a cache of keys and values, prompts stored once for several sequences.

B sequences, Hq query heads, Hk key heads (Hq a multiple of Hk), D head size, S slots of the cache, P prompts of at most
L tokens.

    O_b = Σ_s softmax_s(scale·q_b·k_s)·v_s  over the first lengths_b slots of b's cache and, if it has one, its prompt

No gradient: this is for sampling. Numerically as ``attention``. arXiv:2402.05099
"""

import torch
from torch import Tensor

from . import checks
from .dispatch import Op


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    prefix_of: Tensor | None = None,
    prefix_lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """One decoding step of softmax attention.

    Args:
        q: ``[B,Hq,D]`` the new token of each sequence.
        k_cache: ``[B,S,Hk,D]`` of q's dtype, the new token's own key included.
        v_cache: ``[B,S,Hk,D]`` of q's dtype.
        lengths: ``[B]`` int32 filled slots, 0…S; a sequence that sees nothing gets 0.
        scale: of the scores; D^{−1/2} by default.
        prefix_k: ``[P,L,Hk,D]`` keys of shared prompts; comes together with ``prefix_v`` and ``prefix_of``.
        prefix_v: ``[P,L,Hk,D]``.
        prefix_of: ``[B]`` int32 the prompt of each sequence, −1 for none.
        prefix_lengths: ``[P]`` int32 tokens of each prompt; None means all L.
        backend: eager, or None for the configured choice.

    Returns:
        ``[B,Hq,D]`` of q's dtype.

    Raises:
        ValueError: a wrong shape, dtype, device, length or index, named.
    """
    checks.floating(q, "q", (-1, -1, -1))
    batch, heads, size = q.shape
    checks.floating(k_cache, "k_cache", (batch, -1, -1, size), q)
    slots, key_heads = k_cache.shape[1:3]
    checks.floating(v_cache, "v_cache", (batch, slots, key_heads, size), q)
    groups = key_heads > 0 and heads % key_heads == 0
    checks.expect(groups, "k_cache", f"a number of heads that divides q's {heads}", key_heads)
    parts = [prefix_k is None, prefix_v is None, prefix_of is None]
    checks.expect(all(parts) or not any(parts), "prefix_of", "all of prefix_k, prefix_v, prefix_of", "some")
    prompts = _check_prefix(prefix_k, prefix_v, prefix_lengths, q, key_heads)
    for name, tensor in {"k_cache": k_cache, "v_cache": v_cache, "prefix_k": prefix_k, "prefix_v": prefix_v}.items():
        came = q.dtype if tensor is None else tensor.dtype
        checks.expect(came == q.dtype, name, str(q.dtype), came)
    _check_range(lengths, "lengths", batch, 0, slots, q)
    _check_range(prefix_of, "prefix_of", batch, -1, prompts - 1, q)
    scale = size**-0.5 if scale is None else scale
    return OP(backend, q, q, k_cache, v_cache, lengths, scale, prefix_k, prefix_v, prefix_of, prefix_lengths)


@torch.no_grad()
def _eager(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    scale: float,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    prefix_of: Tensor | None,
    prefix_lengths: Tensor | None,
) -> Tensor:
    """The definition: every sequence's prompt copied in front of its cache."""
    k, v, seen = k_cache, v_cache, _first(lengths, k_cache.shape[1])
    if prefix_k is not None and prefix_v is not None and prefix_of is not None and len(prefix_k):
        own = prefix_of.clamp(min=0).long()
        length = torch.full_like(prefix_of, prefix_k.shape[1]) if prefix_lengths is None else prefix_lengths[own]
        k, v = torch.cat([prefix_k[own], k], 1), torch.cat([prefix_v[own], v], 1)
        seen = torch.cat([_first(torch.where(prefix_of < 0, 0, length), prefix_k.shape[1]), seen], 1)
    dtype = checks.statistics_dtype(q)
    # What lies in unfilled slots is not read: 0 times NaN would be NaN.
    k, v = (torch.where(seen[:, :, None, None], rows.to(dtype), 0.0) for rows in (k, v))
    grouped = q.to(dtype).reshape(len(q), k.shape[2], q.shape[1] // k.shape[2], q.shape[2])  # [B,Hk,G,D]
    scores = torch.einsum("bkgd,bskd->bkgs", grouped, k) * scale
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    weights = torch.where(seen[:, None, None], weights, 0.0)  # a row that sees nothing is NaN up to here
    return torch.einsum("bkgs,bskd->bkgd", weights, v).flatten(1, 2).to(q.dtype)


def _first(counts: Tensor, slots: int) -> Tensor:
    """``[B,slots]`` True in the first ``counts`` slots."""
    return torch.arange(slots, device=counts.device) < counts[:, None]


def _check_prefix(
    prefix_k: Tensor | None, prefix_v: Tensor | None, prefix_lengths: Tensor | None, q: Tensor, key_heads: int
) -> int:
    """Gives P."""
    if prefix_k is None:
        checks.expect(prefix_lengths is None, "prefix_lengths", "None without prefix_k", "a tensor")
        return 0
    checks.floating(prefix_k, "prefix_k", (-1, -1, key_heads, q.shape[2]), q)
    checks.floating(prefix_v, "prefix_v", tuple(prefix_k.shape), q)
    _check_range(prefix_lengths, "prefix_lengths", len(prefix_k), 0, prefix_k.shape[1], q)
    return len(prefix_k)


def _check_range(tensor: Tensor | None, name: str, length: int, low: int, high: int, like: Tensor) -> None:
    """A given tensor is int32 ``[length]`` and, where looking costs nothing, within ``low…high``."""
    if tensor is None:
        return
    checks.shaped(tensor, name, (length,), like)
    checks.expect(tensor.dtype == torch.int32, name, "int32", tensor.dtype)
    if length and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        smallest, largest = int(tensor.min()), int(tensor.max())
        came = smallest if smallest < low else largest
        checks.expect(low <= smallest and largest <= high, name, f"numbers from {low} to {high}", came)


OP = Op("decode_attention", _eager)
