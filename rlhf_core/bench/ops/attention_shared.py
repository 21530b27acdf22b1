"""``attention_shared``: the op ``attention`` where several responses share a prompt.

P prompts of L tokens, G responses of R tokens each, N = P·(L + G·R) packed tokens: a prompt, then its responses. Output
and gradients as in ``attention``.

The padded layout is what those run who cannot share: P·G sequences of L + R tokens, each response behind a copy of its
prompt. Making the copies is not timed. A copy's output is compared with the prompt's, the sum of the copies' gradients
with the prompt's gradient; from above, only a prompt's first copy gets what the prompt gets.

Flops: the pairs L²/2 + G·(L·R + R²/2) of a prompt, as in ``attention``; copies have G·(L + R)²/2.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case, widened
from ..operation import Operation, Work, offsets
from .attention import heads, work


class SharedCase(Case):
    """A case whose padded layout is ``[P·G, L+R]`` of copies."""

    def __init__(self, sizes: tuple[int, ...], inputs: Mapping[str, Tensor], operation: Operation) -> None:
        """Take P, L, G, R and the inputs."""
        self.prompts, self.prompt_tokens, self.responses, self.response_tokens = sizes
        super().__init__(inputs, operation.per_token, operation.learnt, operation.options)

    @cached_property
    def padded(self) -> Mapping[str, Tensor]:
        """The copies."""
        found = dict(super().padded)
        by_prompt = found["upstream"].view(self.prompts, self.responses, *found["upstream"].shape[1:])
        by_prompt[:, 1:, : self.prompt_tokens] = 0
        return found

    def to_padded(self, packed: Tensor) -> Tensor:
        """``[P·G, L+R, …]`` of ``[N, …]``."""
        return packed[self.source]

    def gradient_to_packed(self, tensor: Tensor) -> Tensor:
        """A prompt's gradient is the sum of its copies'."""
        if tuple(tensor.shape[:2]) != tuple(self.source.shape):
            return tensor
        zeros = widened(tensor).new_zeros(len(self.packed["q"]), *tensor.shape[2:])
        return zeros.index_add(0, self.source.flatten(), widened(tensor).flatten(0, 1))

    @cached_property
    def source(self) -> Tensor:
        """``[P·G, L+R]`` the packed token that each is a copy of."""
        device = self.packed["q"].device
        begin = torch.arange(self.prompts, device=device) * (len(self.packed["q"]) // self.prompts)
        prompt = torch.arange(self.prompt_tokens, device=device).expand(self.responses, -1)
        response = torch.arange(self.responses * self.response_tokens, device=device).view(self.responses, -1)
        each = torch.cat([prompt, self.prompt_tokens + response], 1)
        return (begin[:, None, None] + each).flatten(0, 1)

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.full((len(self.source),), self.source.shape[1], device=self.source.device)

    @cached_property
    def _place(self) -> tuple[Tensor, Tensor]:
        """The first copy of each packed token."""
        rows, width = self.source.shape
        flat = torch.arange(rows * width, device=self.source.device)
        none = flat.new_full((len(self.packed["q"]),), rows * width)
        first = none.scatter_reduce(0, self.source.flatten(), flat, "amin")
        return first // width, first % width


class AttentionShared(Operation):
    """All prompts of one length, and all responses: so that the ratio of the pairs is a formula."""

    name = "attention_shared"
    kernel = "attention"
    dims = ("prompts", "prompt_tokens", "responses", "response_tokens", "query_heads", "key_heads", "head_size")
    presets: ClassVar = {
        "ci": ("2x64x3x16x4x2x32",),
        "attention": ("1x1024x8x128x8x8x64", "2x512x4x256x8x8x64", "1x1024x4x1024x4x4x64"),
        "gpu-attention": ("1x4096x8x256x4x4x128", "4x1024x8x256x8x8x128", "1x1024x8x1024x8x8x128"),
    }
    per_token = ("q", "k", "v", "upstream")
    learnt = ("q", "k", "v")
    required = ("out",)
    sequences = False

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """Of prompts and responses, in their order."""
        prompts, prompt_tokens, responses, response_tokens = sizes[:4]
        return [prompt_tokens, *[response_tokens] * responses] * prompts

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """As of ``attention``, and how many responses each prompt has."""
        sharing = {"cu_seqlens": offsets(lengths), "responses_per_prompt": torch.full((sizes[0],), sizes[2]).int()}
        return heads(sum(lengths), sizes[-3:], dtype, generator) | sharing

    def case_of(self, sizes: tuple[int, ...], inputs: Mapping[str, Tensor]) -> Case:
        """With copies as the padded layout."""
        return SharedCase(sizes[:4], inputs, self)

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x, per_prompt = case.packed, case.packed["responses_per_prompt"]
        out = kernels.attention(
            x["q"], x["k"], x["v"], x["cu_seqlens"], responses_per_prompt=per_prompt, backend=backend
        )
        return {"out": out}

    def work(self, case: Case, mode: str) -> Work:
        """A prompt's pairs once."""
        return work(case, mode, pairs=_pairs(case))

    def copied(self, case: Case, mode: str) -> float:
        """The ratio of the pairs."""
        responses, width = case.packed["responses_per_prompt"].sum().item(), _length(case, 0) + _length(case, 1)
        return responses * width * (width + 1) / 2 / _pairs(case)


def _pairs(case: Case) -> float:
    prompts, responses = len(case.packed["responses_per_prompt"]), case.packed["responses_per_prompt"].sum().item()
    prompt, response = _length(case, 0), _length(case, 1)
    own = response * (response + 1) / 2
    return prompts * prompt * (prompt + 1) / 2 + responses * (prompt * response + own)


def _length(case: Case, sequence: int) -> int:
    return int(case.packed["cu_seqlens"][sequence + 1] - case.packed["cu_seqlens"][sequence])


OPERATION = AttentionShared()
