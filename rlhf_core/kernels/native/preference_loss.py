"""``preference_loss`` in C++ and CUDA: csrc/cpu/preference_loss.cpp, csrc/cuda/preference_loss.cu."""

import torch
from torch import Tensor

from .. import checks, preference_loss
from ..policy_loss import Metrics
from .scalars import BUILT, add, scalar

if BUILT:

    @torch.library.register_fake("rlhf::preference_loss")  # type: ignore[untyped-decorator]
    def _shapes(chosen: Tensor, *rest: object) -> tuple[Tensor, ...]:
        pair = torch.empty_like(chosen)
        return chosen.new_empty(()), chosen.new_empty(len(preference_loss.METRICS)), pair, pair.clone()


def _run(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    beta: float,
    kind: str,
    label_smoothing: float,
    margin: float,
    chosen_lengths: Tensor | None,
    rejected_lengths: Tensor | None,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, Metrics]:
    dtype = checks.statistics_dtype(chosen, rejected, ref_chosen, ref_rejected)

    def fixed(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(dtype)

    loss, metrics, *_ = torch.ops.rlhf.preference_loss(
        chosen.to(dtype), rejected.to(dtype), fixed(ref_chosen), fixed(ref_rejected), fixed(chosen_lengths),
        fixed(rejected_lengths), scalar(denominator), beta, kind, label_smoothing, margin,
    )  # fmt: skip
    return loss, dict(zip(preference_loss.METRICS, metrics.unbind(), strict=True))


def _wide(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | None, ref_rejected: Tensor | None, *_: object) -> bool:
    return checks.statistics_dtype(chosen, rejected, ref_chosen, ref_rejected) == torch.float64


add(preference_loss.OP, _run, _wide)
