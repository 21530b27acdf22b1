"""The C++ backend of the ops that have one: shapes for tracing, and an entry each in the registry."""

import torch
from torch import Tensor

from . import extension, gae
from .dispatch import Implementation

if extension.why_not() is None:

    @torch.library.register_fake("rlhf::shaped_gae")  # type: ignore[untyped-decorator]
    def _shaped_gae_shapes(scores: Tensor, values: Tensor, *rest: object) -> tuple[Tensor, ...]:
        token, scalar = torch.empty_like(values), values.new_empty(())
        return token, token.clone(), token.clone(), scalar.to(torch.int64), scalar.clone(), scalar.clone()


def _shaped_gae(
    scores: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    rewards: Tensor | None,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    bootstrap: Tensor | None,
    gamma: float,
    lam: float,
    kl_coef: float,
    kl_estimator: str,
    score_clip: float | None,
) -> gae.GAE:
    per_token = (mask, rewards, logprobs, ref_logprobs, bootstrap)
    scalars = (gamma, lam, kl_coef, kl_estimator, score_clip)
    return gae.GAE(*torch.ops.rlhf.shaped_gae(scores, values, cu_seqlens, *per_token, *scalars))


gae.OP.add(
    "cpu",
    Implementation(
        _shaped_gae,
        devices=("cpu",),
        dtypes=(torch.float32, torch.float64),
        unavailable=extension.why_not(),
    ),
)
