"""``decode_attention_shared``: the op ``decode_attention`` where several sequences continue the same prompt.

P prompts of L tokens, G sequences each, B = P·G; S slots of a sequence's own cache. Output as in ``decode_attention``.

The padded layout is what those run who cannot share: caches of L + S slots, with a copy of the prompt in front. Making
the copies is not timed.

Bytes: q, each prompt once and the filled slots are read, out is written.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work
from .decode_attention import cache, work


class SharedCache(Case):
    """A case whose padded layout has a copy of the prompt in front of each cache."""

    @cached_property
    def padded(self) -> Mapping[str, Tensor]:
        """``q``, ``k_cache`` and ``v_cache [B, L+S, Hk, D]``, ``lengths``."""
        x, own = self.packed, self.packed["prefix_of"].long()
        return {
            "q": x["q"],
            "k_cache": torch.cat([x["prefix_k"][own], x["k_cache"]], 1),
            "v_cache": torch.cat([x["prefix_v"][own], x["v_cache"]], 1),
            "lengths": x["lengths"] + x["prefix_k"].shape[1],
        }


class DecodeAttentionShared(Operation):
    """All prompts of one length; ``lengths`` are those of the sequences' own caches."""

    name = "decode_attention_shared"
    kernel = "decode_attention"
    dims = ("prompts", "prompt_tokens", "sequences", "slots", "query_heads", "key_heads", "head_size")
    presets: ClassVar = {
        "ci": ("2x32x3x16x4x2x32",),
        "attention": ("8x256x8x64x9x3x64", "4x1024x8x128x8x8x64"),
        "gpu-attention": ("8x1024x16x256x32x8x128", "4x4096x8x256x32x8x128"),
    }
    required = ("out",)

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """``[P·G]`` filled slots."""
        prompts, _, sequences, slots = sizes[:4]
        return super().lengths((prompts * sequences, slots), how, generator)

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Sequences of a prompt lie side by side."""
        prompts, prompt_tokens, sequences, slots = sizes[:4]
        own = cache(len(lengths), slots, sizes[-3:], dtype, generator)
        shared = cache(prompts, prompt_tokens, sizes[-3:], dtype, generator)
        return own | {
            "lengths": torch.tensor(lengths).int(),
            "prefix_k": shared["k_cache"],
            "prefix_v": shared["v_cache"],
            "prefix_of": torch.arange(prompts).repeat_interleave(sequences).int(),
        }

    def case_of(self, sizes: tuple[int, ...], inputs: Mapping[str, Tensor]) -> Case:
        """With copies as the padded layout."""
        return SharedCache(inputs, self.per_token, self.learnt, self.options)

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        out = kernels.decode_attention(
            x["q"], x["k_cache"], x["v_cache"], x["lengths"], prefix_k=x["prefix_k"], prefix_v=x["prefix_v"],
            prefix_of=x["prefix_of"], backend=backend,
        )  # fmt: skip
        return {"out": out}

    def work(self, case: Case, mode: str) -> Work:
        """A prompt is read once, and seen by each of its sequences."""
        filled, (prompts, length) = int(case.packed["lengths"].sum()), case.packed["prefix_k"].shape[:2]
        return work(case, read=filled + prompts * length, seen=filled + len(case.packed["q"]) * length)

    def copied(self, case: Case, mode: str) -> float:
        """The ratio of the bytes: that is what a step waits for."""
        seen = int(case.packed["lengths"].sum()) + len(case.packed["q"]) * case.packed["prefix_k"].shape[1]
        return work(case, read=seen, seen=seen).bytes / self.work(case, mode).bytes


OPERATION = DecodeAttentionShared()
