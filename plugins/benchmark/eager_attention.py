"""Attention as frameworks run it: padded rectangles through torch's fused kernel, with a mask where there is padding.

B sequences, T tokens each, Hq query heads, Hk key heads, D head size.

Source: transformers 5.17's integrations/sdpa_attention.py, and masking_utils.py for the mask: none, and ``is_causal``,
where no token is padding; else a boolean one, and keys repeated for grouped heads. The mask is made once a forward pass
of a model, not once a layer: untimed. So are copies of prompts, where a case has those.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case

Run = Callable[[], dict[str, Tensor]]


def attention(case: Case) -> Run:
    """A layer's training step on right-padded sequences."""
    x = case.padded
    length, groups = x["q"].shape[1], x["q"].shape[2] // x["k"].shape[2]
    there = torch.arange(length, device=x["q"].device) < x["lengths"][:, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=there.device).tril()
    mask = None if there.all() else (causal & there[:, None, :])[:, None]
    by_flag = mask is None and groups > 1

    def run() -> dict[str, Tensor]:
        q, k, v = (x[name].transpose(1, 2) for name in ("q", "k", "v"))
        if mask is not None:
            k, v = _repeated(k, groups), _repeated(v, groups)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=by_flag)
        return {"out": found.transpose(1, 2).contiguous()}

    return run


def decode_attention(case: Case) -> Run:
    """A layer's decoding step; the cache lies as ``[B, Hk, S, D]``."""
    x = case.padded
    q, keys = x["q"][:, :, None], x["k_cache"].shape[2]
    k, v = (x[name].transpose(1, 2).contiguous() for name in ("k_cache", "v_cache"))
    groups = q.shape[1] // keys
    filled = torch.arange(k.shape[2], device=q.device) < x["lengths"][:, None]
    mask = None if filled.all() else filled[:, None, None]
    by_flag = mask is None and groups > 1

    def run() -> dict[str, Tensor]:
        # With a mask and one query, the heads of a group stand in for queries: transformers' pack_gqa.
        packed = q if mask is None else q.reshape(len(q), keys, groups, q.shape[3])
        found = F.scaled_dot_product_attention(packed, k, v, attn_mask=mask, enable_gqa=by_flag)
        return {"out": found.reshape(len(q), -1, q.shape[3])}

    return run


def _repeated(rows: Tensor, times: int) -> Tensor:
    """``[B, Hk, T, D]`` to ``[B, Hq, T, D]``: transformers' repeat_kv."""
    batch, heads, length, size = rows.shape
    if times == 1:
        return rows
    return rows[:, :, None].expand(batch, heads, times, length, size).reshape(batch, heads * times, length, size)
