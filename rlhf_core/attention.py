"""Our attention inside any ``transformers`` model: packed rows by ``cu_seqlens``, padded batches as ever.

N packed tokens, B sequences, Hq query heads, Hk key heads, D head size.
"""

import logging
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import disable_progress_bar

from . import kernels
from .errors import UserError

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
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if cu_seqlens is None:  # a padded batch: rollouts with a KV cache
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    for option in ("softcap", "s_aux"):
        if options.get(option) is not None:
            raise UserError(f"policy: packed attention has no {option}, which {type(module).__name__} asks for")
    if options.get("dropout"):
        _say_once(f"{type(module).__name__}: attention dropout is not applied to packed rows")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N, heads, D]
    out = kernels.attention(q, k, v, cu_seqlens, scale=scaling, window=options.get("sliding_window"))
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
