"""``token_logprobs`` and ``logprobs_from_logits`` in C++: csrc/cpu/head.cpp, csrc/cpu/logits.cpp."""

import torch
from torch import Tensor

from .. import checks, logprobs
from .products import widens
from .scalars import BUILT, add_cpu

if BUILT:

    def _rows(of: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
        tokens = of.shape[0]  # len() would make a number of it, and each size a compilation of its own
        row = of.new_empty(tokens, dtype=checks.statistics_dtype(of))
        return row, row.new_empty(tokens if entropy else 0), row.clone()

    @torch.library.register_fake("rlhf::token_logprobs")  # type: ignore[untyped-decorator]
    def _token_shapes(
        hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, entropy: bool
    ) -> tuple[Tensor, ...]:
        return _rows(hidden, entropy)

    @torch.library.register_fake("rlhf::token_logprobs_backward")  # type: ignore[untyped-decorator]
    def _token_gradients(
        grad: Tensor, grad_entropies: Tensor | None, hidden: Tensor, weight: Tensor, targets: Tensor,
        bias: Tensor | None, *rest: object,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        none = hidden.new_empty(0, dtype=checks.statistics_dtype(hidden))
        grad_bias = none if bias is None else torch.empty_like(bias)
        return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), grad_bias

    @torch.library.register_fake("rlhf::logprobs_from_logits")  # type: ignore[untyped-decorator]
    def _logits_shapes(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, ...]:
        logprobs, entropies, lse = _rows(logits, entropy)
        return logprobs, entropies, lse.double()

    @torch.library.register_fake("rlhf::logprobs_from_logits_backward")  # type: ignore[untyped-decorator]
    def _logits_gradient(grad: Tensor, grad_entropies: Tensor | None, logits: Tensor, *rest: object) -> Tensor:
        return logits.new_empty(logits.shape)


def _token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    if widens(hidden.dtype):
        hidden, weight = hidden.float(), weight.float()
    found, entropies, _ = torch.ops.rlhf.token_logprobs(hidden, weight, targets, bias, temperature, entropy)
    return found, entropies if entropy else None


def _from_logits(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    logits = logits.float() if logits.dtype == torch.float16 else logits
    found, entropies, _ = torch.ops.rlhf.logprobs_from_logits(logits, targets, temperature, entropy)
    return found, entropies if entropy else None


def no_columns(rows: Tensor, *_: object) -> str | None:
    """Why a call cannot be computed, or None."""
    return None if rows.shape[1] else "needs at least one column"


add_cpu(logprobs.TOKEN_LOGPROBS, _token_logprobs, no_columns)
add_cpu(logprobs.FROM_LOGITS, _from_logits, no_columns)
