"""Our attention inside any ``transformers`` model: packed rows by ``cu_seqlens``, padded batches as ever.

N packed tokens, B sequences, Hq query heads, Hk key heads, D head size.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import disable_progress_bar

from . import kernels

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
    rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return kernels.attention(*rows, cu_seqlens, scale=scaling)[None], None


def _mask(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    # Packed rows come without a mask and need none: cu_seqlens says where sequences end.
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **options)


disable_progress_bar()  # transformers' own bars for reading and writing a file; ours tell of the run
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
