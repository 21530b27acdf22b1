"""``ranking_loss``: a reward model's loss on K ranked responses to a prompt, over all pairs.

N responses, P prompts. Outputs: ``loss``, with the gradient of ``scores``, and ``accuracy`` where an implementation has
it.

Bytes: scores and ranks (int64) are read, a gradient is written.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work, offsets


class RankingLoss(Operation):
    """Neither ranks nor scores of a prompt are tied: frameworks count ties in other ways, or not at all."""

    name = "ranking_loss"
    dims = ("prompts", "responses")
    presets: ClassVar = {
        "ci": ("64x4", "512x9"),
        "ranking": ("64x9", "512x4", "512x9", "4096x9"),
        "gpu": ("512x9", "4096x9"),
    }
    per_token = ("scores", "ranks")
    learnt = ("scores",)
    required = ("loss",)

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Scores far enough apart to be so in bfloat16."""
        ranks, places = (torch.cat([torch.randperm(size, generator=generator) for size in lengths]) for _ in range(2))
        scores = 0.375 * places - 1 + 0.125 * torch.rand(len(ranks), generator=generator)
        return {"scores": scores.to(dtype), "ranks": ranks, "cu_seqlens": offsets(lengths)}

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        loss, accuracy = kernels.ranking_loss(x["scores"], x["cu_seqlens"], x["ranks"], backend=backend)
        return {"loss": loss, "accuracy": accuracy}

    def work(self, case: Case, mode: str) -> Work:
        """A float and a rank in, a gradient out."""
        responses, width = len(case.packed["scores"]), case.packed["scores"].element_size()
        return Work(responses * (width + 8 + (mode != "fwd") * width))


OPERATION = RankingLoss()
