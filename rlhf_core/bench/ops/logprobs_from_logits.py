"""``logprobs_from_logits``: log-probs of given tokens from logits that exist already, and the entropy for the log.

N tokens, V vocabulary. Outputs: ``out`` ``[N]`` the log-probs, with the gradient of ``logits`` under the given gradient
``upstream`` of ``out``; and ``entropy`` ``[N]``, without one as in ``token_logprobs_entropy``.

Bytes: logits are read, and a gradient as large is written, for which they have to be read once more.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work
from .token_logprobs import statistics

PASSES = {"fwd": 1, "bwd": 2, "full": 3}
"""times that something as large as the logits is read or written"""


class LogprobsFromLogits(Operation):
    """``entropy=True``, temperature 1."""

    name = "logprobs_from_logits"
    dims = ("tokens", "vocabulary")
    presets: ClassVar = {
        "ci": ("256x1000",),
        "logprobs": ("4096x4096", "2048x49152"),
        "gpu-logprobs": ("8192x32000", "8192x151936"),
    }
    learnt = ("logits",)
    required = ("out", "entropy")
    sequences = False

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """One token each."""
        return [1] * sizes[0]

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Logits of a variance of 4, and any token as a target."""
        tokens, vocabulary = sizes
        return {
            "logits": (torch.randn(tokens, vocabulary, generator=generator) * 2).to(dtype),
            "targets": torch.randint(vocabulary, (tokens,), generator=generator),
            "upstream": torch.randn(tokens, generator=generator).to(statistics(dtype)),
        }

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        out, entropy = kernels.logprobs_from_logits(x["logits"], x["targets"], entropy=True, backend=backend)
        return {"out": out, "entropy": entropy}

    def work(self, case: Case, mode: str) -> Work:
        """Passes over the logits; what has a number a token does not count."""
        return Work(PASSES[mode] * case.packed["logits"].nbytes)


OPERATION = LogprobsFromLogits()
