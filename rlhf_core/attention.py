"""Our attention inside any ``transformers`` model: packed rows by ``cu_seqlens``, decoding by a ``KVCache``.

N packed tokens, B sequences, Hq query heads, Hk key heads, D head size.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import disable_progress_bar

from . import kernels
from .errors import UserError
from .kv_cache import KVCache

log = logging.getLogger("rlhf")

NAME = "rlhf"
"""The ``attn_implementation`` under which it is registered."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None = None,
    responses_per_prompt: Tensor | None = None,
    kv_cache: KVCache | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if cu_seqlens is None and kv_cache is None:  # a padded batch, as transformers itself makes them
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    for option in ("softcap", "s_aux"):
        if options.get(option) is not None:
            raise UserError(f"policy: packed attention has no {option}, which {type(module).__name__} asks for")
    if options.get("dropout"):
        _say_once(f"{type(module).__name__}: attention dropout is not applied to packed rows")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N, heads, D]
    if torch.is_autocast_enabled(q.device.type):  # rotary embeddings leave float32 behind
        q, k, v = (tensor.to(torch.get_autocast_dtype(q.device.type)) for tensor in (q, k, v))
    window = options.get("sliding_window")
    if kv_cache is not None:
        layer = kv_cache.put(int(module.layer_idx), k, v)  # type: ignore[arg-type]
        if cu_seqlens is None:
            return kv_cache.attend(layer, q, scaling, window)[None], None
    assert cu_seqlens is not None
    out = kernels.attention(
        q, k, v, cu_seqlens, scale=scaling, window=window, responses_per_prompt=responses_per_prompt
    )
    return out[None], None


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def _mask(attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    # Packed rows come without a mask and need none: cu_seqlens says where sequences end.
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **options)


disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own bars for reading and writing a file; ours tell of the run
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
