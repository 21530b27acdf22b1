"""How terms of tokens become one loss: a weight for each token, the same for every part of the loss.

N packed tokens, B sequences; n valid tokens, n_b of them in sequence b, S sequences that have one.

token     w_t = 1/n             every token counts the same
sequence  w_t = 1/(S·n_b)       every sequence counts the same; those without a valid token do not count
constant  w_t = 1/denominator   no length in it at all (Dr. GRPO)

``denominator`` replaces n or S by the global count, so that the losses of microbatches and ranks add up to that of the
whole batch. Without any valid token the weights are 0.
"""

import torch
from torch import Tensor

from . import checks

AGGREGATES = ("token", "sequence", "constant")


def sequence_of(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """``[N]`` int64 the sequence each token belongs to."""
    token = torch.arange(tokens, device=cu_seqlens.device)
    return torch.bucketize(token, cu_seqlens[1:].long(), right=True)


def sums_of_sequences(terms: Tensor, cu_seqlens: Tensor) -> Tensor:
    """``[B]`` sums of ``[N]`` terms."""
    zeros = terms.new_zeros(len(cu_seqlens) - 1)
    return zeros.index_add(0, sequence_of(cu_seqlens, len(terms)), terms)


def check_aggregate(how: str, cu_seqlens: Tensor | None, denominator: "float | Tensor | None", like: Tensor) -> None:
    """Raise ``ValueError`` where the arguments do not go together; ``like`` is one of the ``[N]`` tensors."""
    checks.one_of(how, "aggregate", AGGREGATES)
    if cu_seqlens is not None:
        checks.offsets(cu_seqlens, like=like)
        if not torch.compiler.is_compiling() and like.device.type == "cpu":  # elsewhere it would synchronise
            checks.host_offsets(cu_seqlens, len(like))
    checks.expect(how != "sequence" or cu_seqlens is not None, "cu_seqlens", 'offsets with aggregate="sequence"', None)
    known = how != "constant" or denominator is not None
    checks.expect(known, "denominator", 'a number with aggregate="constant"', None)
    checks.number(denominator, "denominator", positive=True)


def token_weights(
    valid: Tensor, how: str, cu_seqlens: Tensor | None, denominator: "float | Tensor | None", dtype: torch.dtype
) -> Tensor:
    """``[N]`` weights of ``dtype``, 0 where not ``valid`` (``[N]`` bool)."""
    ones = valid.to(dtype)
    if how == "sequence" and cu_seqlens is not None:
        lengths = sums_of_sequences(ones, cu_seqlens)
        count: float | Tensor = (lengths > 0).sum().clamp(min=1) if denominator is None else denominator
        return ones / (lengths.clamp(min=1) * count)[sequence_of(cu_seqlens, len(valid))]
    return ones / (ones.sum().clamp(min=1) if denominator is None else denominator)
