"""Which dtypes this processor multiplies."""

import torch

from .. import extension

BF16 = bool(extension.build_info().get("bf16_products"))
"""Whether it multiplies bfloat16 by instruction."""


def widens(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are computed in float32: float16 always, bfloat16 where it is not multiplied."""
    return dtype == torch.float16 or (dtype == torch.bfloat16 and not BF16)
