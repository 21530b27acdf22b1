"""``ppo_loss`` and ``grpo_loss`` in C++ and CUDA: csrc/cpu/policy_loss.cpp, csrc/cuda/policy_loss.cu."""

import torch
from torch import Tensor

from .. import grpo_loss, ppo_loss
from ..policy_loss import METRICS, Metrics, Terms
from .scalars import BUILT, add, scalar

FIELDS = Terms._fields
LEARNT = [FIELDS.index(name) for name in ("logprobs", "values", "entropy")]

if BUILT:

    @torch.library.register_fake("rlhf::policy_loss")  # type: ignore[untyped-decorator]
    def _shapes(*arguments: object) -> tuple[Tensor, ...]:
        logprobs, values, entropy = (arguments[position] for position in LEARNT)
        assert isinstance(logprobs, Tensor)

        def like(tensor: object) -> Tensor:
            return torch.empty_like(tensor) if isinstance(tensor, Tensor) else logprobs.new_empty(0)

        return logprobs.new_empty(()), logprobs.new_empty(len(METRICS)), like(logprobs), like(values), like(entropy)


def _run(x: Terms) -> tuple[Tensor, Metrics]:
    dtype = x.dtype

    def learnt(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)

    def fixed(tensor: Tensor | None) -> Tensor | None:
        tensor = learnt(tensor)
        return tensor.detach() if tensor is not None and tensor.requires_grad else tensor

    loss, metrics, *_ = torch.ops.rlhf.policy_loss(
        learnt(x.logprobs), fixed(x.old_logprobs), fixed(x.advantages), x.mask, learnt(x.values),
        fixed(x.old_values), fixed(x.returns), learnt(x.entropy), fixed(x.ref_logprobs), fixed(x.importance),
        x.cu_seqlens, scalar(x.mean), scalar(x.var), scalar(x.denominator), *x[FIELDS.index("objective") :],
    )  # fmt: skip
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))


def _wide(x: Terms) -> bool:
    return x.dtype == torch.float64


add(ppo_loss.OP, _run, _wide)
add(grpo_loss.OP, _run, _wide)
