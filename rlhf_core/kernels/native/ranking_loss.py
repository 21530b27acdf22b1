"""``ranking_loss`` in C++ and CUDA: csrc/cpu/ranking_loss.cpp, csrc/cuda/ranking_loss.cu."""

import torch
from torch import Tensor

from .. import checks, ranking_loss
from .scalars import BUILT, add, scalar

if BUILT:

    @torch.library.register_fake("rlhf::ranking_loss")  # type: ignore[untyped-decorator]
    def _shapes(scores: Tensor, *rest: object) -> tuple[Tensor, ...]:
        return scores.new_empty(()), scores.new_empty(()), torch.empty_like(scores)


def _run(
    scores: Tensor,
    cu_seqlens: Tensor,
    ranks: Tensor,
    margin: "float | Tensor | None",
    center_coef: float,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, Tensor]:
    scores = scores.to(checks.statistics_dtype(scores))
    rating = margin.detach().to(scores.dtype) if isinstance(margin, Tensor) else None
    number = 0.0 if margin is None or isinstance(margin, Tensor) else margin
    # float64 holds every rank there is, so equal stays equal
    given = (scores, cu_seqlens, ranks.detach().to(torch.float64), rating, scalar(denominator))
    loss, accuracy, _ = torch.ops.rlhf.ranking_loss(*given, number, center_coef)
    return loss, accuracy


def _wide(scores: Tensor, *rest: object) -> bool:
    return scores.dtype == torch.float64


add(ranking_loss.OP, _run, _wide)
