"""``token_logprobs``: log-probs of given tokens from the last hidden states.

N tokens, H hidden size, V vocabulary. Output: ``out`` ``[N]`` the log-probs, with gradients of ``hidden`` and
``weight`` under the given gradient ``upstream`` of ``out``.

Flops: hidden·weightᵀ forward, two products as large backward. That ours makes the logits twice rather than keep them is
its own affair. Bytes: hidden, weight, targets are read, log-probs written; and for the backward, two gradients.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work

PRODUCTS = {"fwd": 1, "bwd": 2, "full": 3}
"""matrix products of a mode, each of 2·N·H·V flops"""


class TokenLogprobs(Operation):
    """Without the entropy; temperature 1."""

    name = "token_logprobs"
    dims = ("tokens", "hidden", "vocabulary")
    presets: ClassVar = {
        "ci": ("256x64x1000",),
        "logprobs": ("4096x256x4096", "2048x576x49152"),
        "gpu-logprobs": ("8192x4096x131072", "8192x2048x32000"),
    }
    learnt = ("hidden", "weight")
    required: ClassVar[tuple[str, ...]] = ("out",)
    sequences = False

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """One token each: log-probs know nothing of sequences."""
        return [1] * sizes[0]

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A head whose logits have a variance of 4, and any token as a target."""
        tokens, width, vocabulary = sizes[:3]
        upstream = torch.randn(tokens, generator=generator)
        return head(tokens, width, vocabulary, dtype, generator) | {"upstream": upstream.to(statistics(dtype))}

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        return {"out": kernels.token_logprobs(x["hidden"], x["weight"], x["targets"], backend=backend)}

    def work(self, case: Case, mode: str) -> Work:
        """Three products, and what they are of once."""
        x, tokens = case.packed, len(case.packed["hidden"])
        read = x["hidden"].nbytes + x["weight"].nbytes
        moved = read * (1 if mode == "fwd" else 2) + tokens * 2 * 8
        return Work(moved, PRODUCTS[mode] * products(case, tokens))


def head(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Hidden states, a head and targets."""
    return {
        "hidden": torch.randn(tokens, width, generator=generator).to(dtype),
        "weight": (torch.randn(vocabulary, width, generator=generator) * 2 * width**-0.5).to(dtype),
        "targets": torch.randint(vocabulary, (tokens,), generator=generator),
    }


def products(case: Case, tokens: int) -> int:
    """Flops of one product with the head."""
    return 2 * tokens * case.packed["weight"].numel()


def statistics(dtype: torch.dtype) -> torch.dtype:
    """What log-probs are given in."""
    return torch.promote_types(dtype, torch.float32)


OPERATION = TokenLogprobs()
