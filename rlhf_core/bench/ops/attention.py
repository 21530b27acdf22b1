"""``attention``: causal, over packed sequences.

N packed tokens, T tokens of the longest sequence, Hq query heads, Hk key heads, D head size. Output: ``out``
``[N, Hq, D]``, with gradients of ``q``, ``k`` and ``v`` under the given gradient ``upstream`` of ``out``.

Flops: the pairs (t, s ≤ t) of each sequence's own tokens, and no padding: 4·D a pair and query head forward (q·k and
the weighted sum of v), 2.5 times that backward (five products, the scores again being one). Bytes: q, k, v are read and
out is written; for the backward q, k, v, out and its gradient are read and three gradients written.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work, offsets

PRODUCTS = {"fwd": 1.0, "bwd": 2.5, "full": 3.5}
"""matrix products of a mode, in units of the forward's two"""
SHORTEST = 16
"""tokens of the shortest sequence of a ragged batch"""


class Attention(Operation):
    """``lengths=full`` is the dense case, ``lengths=ragged`` a batch of 16…T tokens a sequence, one of them full."""

    name = "attention"
    dims = ("sequences", "tokens", "query_heads", "key_heads", "head_size")
    presets: ClassVar = {
        "ci": ("3x128x4x2x32",),
        "attention": ("16x256x8x8x64", "8x512x8x8x64", "4x1024x8x8x64", "4x1024x8x2x64", "2x2048x8x8x64"),
        "gpu-attention": ("32x512x16x16x128", "8x2048x16x16x128", "8x2048x16x4x128", "4x4096x8x8x128"),
    }
    per_token = ("q", "k", "v", "upstream")
    learnt = ("q", "k", "v")
    required = ("out",)

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """``[B]``."""
        count, longest = sizes[:2]
        if how == "full":
            return [longest] * count
        drawn: list[int] = torch.randint(min(SHORTEST, longest), longest + 1, (count,), generator=generator).tolist()
        return [longest, *drawn[1:]]

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Scores of variance 1, as trained heads have at the start."""
        return heads(sum(lengths), sizes[-3:], dtype, generator) | {"cu_seqlens": offsets(lengths)}

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        return {"out": kernels.attention(x["q"], x["k"], x["v"], x["cu_seqlens"], backend=backend)}

    def work(self, case: Case, mode: str) -> Work:
        """The causal half of each sequence's square."""
        lengths = case.packed["cu_seqlens"].diff().double()
        return work(case, mode, pairs=float((lengths * (lengths + 1) / 2).sum()))


def heads(tokens: int, sizes: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """q, k, v and a gradient of out for Hq, Hk and D."""
    query_heads, key_heads, size = sizes
    of = {"q": query_heads, "k": key_heads, "v": key_heads, "upstream": query_heads}
    return {name: torch.randn(tokens, count, size, generator=generator).to(dtype) for name, count in of.items()}


def work(case: Case, mode: str, pairs: float) -> Work:
    """Of so many pairs of a query and a key that it sees."""
    q, keys = case.packed["q"], case.packed["k"].nbytes + case.packed["v"].nbytes
    forward, backward = 2 * q.nbytes + keys, 4 * q.nbytes + 2 * keys  # backward: q, out, its gradient; q's gradient
    moved = forward if mode == "fwd" else backward
    return Work(moved, round(PRODUCTS[mode] * 4 * q.shape[2] * q.shape[1] * pairs))


OPERATION = Attention()
