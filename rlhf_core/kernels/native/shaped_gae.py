"""``shaped_gae`` in C++ and CUDA: csrc/cpu/shaped_gae.cpp, csrc/cuda/shaped_gae.cu."""

import torch
from torch import Tensor

from .. import gae
from .scalars import BUILT, add

if BUILT:

    @torch.library.register_fake("rlhf::shaped_gae")  # type: ignore[untyped-decorator]
    def _shapes(scores: Tensor, values: Tensor, *rest: object) -> tuple[Tensor, ...]:
        token, scalar = torch.empty_like(values), values.new_empty(())
        return token, token.clone(), token.clone(), scalar.to(torch.int64), scalar.clone(), scalar.clone()


def _run(*arguments: object) -> gae.GAE:
    return gae.GAE(*torch.ops.rlhf.shaped_gae(*arguments))


def _wide(scores: Tensor, *rest: object) -> bool:
    return scores.dtype == torch.float64


add(gae.OP, _run, _wide)
