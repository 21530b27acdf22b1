"""Attention in plain PyTorch, as well as it can be used.

B sequences, T tokens each, Hq query heads, Hk key heads, g = Hq/Hk, D head size, S slots of a cache; P prompts of L
tokens, G sequences each.

Training: torch's fused kernel with ``is_causal`` and no mask, for behind a causal mask padding to the right is never
seen; so the kernel skips half of the square. It cannot share a prompt without giving out log-sum-exp, so the copies it
runs on are ``eager``'s. Decoding: the g heads of a group are the rows of one product with their keys. A shared prompt
then is another product, of the G·g rows that see it; one softmax over both scores, in float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case

Function = Callable[..., dict[str, Tensor]]
Run = Callable[[], dict[str, Tensor]]


def prepare_attention(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``attention``, and the same on copies of prompts."""
    function, x = transform(attention), case.padded
    return lambda: function(x["q"], x["k"], x["v"])


def prepare_decode(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``decode_attention``."""
    function, tensors = transform(decode), _grouped(case)
    return lambda: function(*tensors)


def prepare_decode_shared(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``decode_attention_shared``: each prompt is read once."""
    function, tensors = transform(decode_shared), _grouped(case)
    prefix = [case.packed[name].transpose(1, 2).contiguous() for name in ("prefix_k", "prefix_v")]
    return lambda: function(*tensors, *prefix)


def attention(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """``[B, T, Hq, D]``."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (rows.transpose(1, 2) for rows in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return {"out": out.transpose(1, 2)}


def decode(q: Tensor, k: Tensor, v: Tensor, unseen: Tensor) -> dict[str, Tensor]:
    """``[B, Hq, D]``.

    Args:
        q: ``[B, Hk, g, D]``.
        k: ``[B, Hk, S, D]``.
        v: likewise.
        unseen: ``[B, 1, 1, S]`` 0, or −inf in unfilled slots.
    """
    weights = torch.softmax(_scores(q, k) + unseen, -1, dtype=unseen.dtype).to(q.dtype)
    return {"out": (weights @ v).flatten(1, 2)}


def decode_shared(
    q: Tensor, k: Tensor, v: Tensor, unseen: Tensor, prefix_k: Tensor, prefix_v: Tensor
) -> dict[str, Tensor]:
    """``[B, Hq, D]``; sequences of a prompt side by side, ``prefix_k`` and ``prefix_v`` as ``[P, Hk, L, D]``."""
    batch, keys, groups, size = q.shape
    prompts, length = prefix_k.shape[0], prefix_k.shape[2]
    together = q.view(prompts, -1, keys, groups, size).transpose(1, 2).flatten(2, 3)  # [P, Hk, G·g, D]

    def apart(rows: Tensor) -> Tensor:  # [P, Hk, G·g, …] to [B, Hk, g, …]
        return rows.view(prompts, keys, -1, groups, rows.shape[3]).transpose(1, 2).flatten(0, 1)

    scores = torch.cat([apart(_scores(together, prefix_k)).to(unseen.dtype), _scores(q, k) + unseen], -1)
    weights = torch.softmax(scores, -1).to(q.dtype)
    of_prompt, own = weights.split([length, k.shape[2]], -1)
    of_prompt = of_prompt.view(prompts, -1, keys, groups, length).transpose(1, 2).flatten(2, 3)
    return {"out": (apart(of_prompt @ prefix_v) + own @ v).reshape(batch, -1, size)}


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


def _grouped(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries as ``[B, Hk, g, D]``, caches as ``[B, Hk, S, D]``, and what is added to scores."""
    x = case.packed
    k, v = (x[name].transpose(1, 2).contiguous() for name in ("k_cache", "v_cache"))
    q = x["q"].view(len(x["q"]), k.shape[1], -1, k.shape[3])
    empty = torch.arange(k.shape[2], device=q.device) >= x["lengths"][:, None]
    zeros = torch.zeros(empty.shape, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    return q, k, v, zeros.masked_fill(empty, -torch.inf)[:, None, None]
