"""``decode_attention``: one new token a sequence, over a cache of keys and values.

B sequences, S slots of the cache, Hq query heads, Hk key heads, D head size. Output: ``out`` ``[B, Hq, D]``; there is
no gradient.

Bytes: q and the filled slots are read, out is written. Flops: 4·D a filled slot and query head.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work


class DecodeAttention(Operation):
    """``lengths=full``: every slot is filled; ``lengths=ragged``: from an eighth of them up."""

    name = "decode_attention"
    dims = ("sequences", "slots", "query_heads", "key_heads", "head_size")
    presets: ClassVar = {
        "ci": ("4x64x4x2x32",),
        "attention": ("16x1024x9x3x64", "64x512x9x3x64", "64x512x8x8x64"),
        "gpu-attention": ("64x2048x32x8x128", "256x1024x32x8x128"),
    }
    required = ("out",)

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Unfilled slots hold numbers too, which nobody may see."""
        sequences, slots = len(lengths), sizes[-4]
        return cache(sequences, slots, sizes[-3:], dtype, generator) | {"lengths": torch.tensor(lengths).int()}

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        out = kernels.decode_attention(x["q"], x["k_cache"], x["v_cache"], x["lengths"], backend=backend)
        return {"out": out}

    def work(self, case: Case, mode: str) -> Work:
        """The filled slots."""
        filled = int(case.packed["lengths"].sum())
        return work(case, read=filled, seen=filled)


def cache(
    sequences: int, slots: int, sizes: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Tensor]:
    """A query a sequence, and its cache, for Hq, Hk and D."""
    query_heads, key_heads, size = sizes
    q = torch.randn(sequences, query_heads, size, generator=generator).to(dtype)
    k, v = (torch.randn(sequences, slots, key_heads, size, generator=generator).to(dtype) for _ in range(2))
    return {"q": q, "k_cache": k, "v_cache": v}


def work(case: Case, read: int, seen: int) -> Work:
    """Of so many slots read from memory, and seen by queries."""
    q, k = case.packed["q"], case.packed["k_cache"]
    moved = 2 * q.nbytes + read * 2 * k.shape[2] * k.shape[3] * k.element_size()
    return Work(moved, 4 * q.shape[2] * q.shape[1] * seen)


OPERATION = DecodeAttention()
