"""Log-probabilities of given tokens, from the last hidden states or from logits.

N packed tokens, H hidden size, V vocabulary.

    z = (hidden·weightᵀ + bias)/temperature;  logprobs_t = z_{t,target} − log Σ_v e^{z_tv}
    entropy_t = −Σ_v p_tv·log p_tv,  p = softmax(z)

The matrix product accumulates into float32 and the logits stay float32: kept in bfloat16 they would cost up to 4e-3
nats. A logit of −inf is a token of probability 0; a row with +inf, or of nothing but −inf, has no distribution: NaN.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dispatch import Op

IGNORED = -100


@overload
def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0,
    entropy: Literal[False] = False, backend: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0,
    entropy: Literal[True], backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    backend: str | None = None,
) -> "Tensor | tuple[Tensor, Tensor]":
    """Log-probs of ``targets`` under a linear head; gradients reach ``hidden``, ``weight`` and ``bias``.

    Args:
        hidden: ``[N,H]``.
        weight: ``[V,H]`` of the same dtype.
        targets: ``[N]`` int64; −100 gives 0 and no gradient.
        bias: ``[V]``.
        temperature: divides the logits; > 0.
        entropy: also return the entropy (also 0 at −100).
        backend: eager, or None for the configured choice.

    Returns:
        ``[N]`` nats, float32 (float64 in, float64 out); with ``entropy`` a pair of such.

    Raises:
        ValueError: a wrong shape, dtype, device or label, named.
    """
    check_head(hidden, weight, targets, bias, temperature)
    logprobs, entropies = TOKEN_LOGPROBS(backend, hidden, hidden, weight, targets, bias, temperature, entropy)
    return logprobs if entropies is None else (logprobs, entropies)


@overload
def logprobs_from_logits(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def logprobs_from_logits(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: Literal[True], backend: str | None = None
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def logprobs_from_logits(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool = False, backend: str | None = None
) -> "Tensor | tuple[Tensor, Tensor]":
    """Log-probs of ``targets`` under logits that exist already; gradients reach ``logits``.

    Args:
        logits: ``[N,V]``.
        targets: ``[N]`` int64; −100 gives 0 and no gradient.
        temperature: divides the logits; > 0.
        entropy: also return the entropy (also 0 at −100).
        backend: eager, or None for the configured choice.

    Returns:
        ``[N]`` nats, float32 (float64 in, float64 out); with ``entropy`` a pair of such.

    Raises:
        ValueError: a wrong shape, dtype, device or label, named.
    """
    checks.floating(logits, "logits", (-1, -1))
    _check_targets(targets, logits, logits.shape[1], temperature)
    logprobs, entropies = FROM_LOGITS(backend, logits, logits, targets, temperature, entropy)
    return logprobs if entropies is None else (logprobs, entropies)


def _token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = checks.statistics_dtype(hidden)
    # Ignored rows are cleared here and not in the logits, where it would cost a copy of [N,V].
    hidden = torch.where((targets != IGNORED)[:, None], hidden.to(dtype), 0.0)
    logits = F.linear(hidden, weight.to(dtype), None if bias is None else bias.to(dtype))
    return _rows(logits, targets, temperature, entropy)


def _from_logits(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    cleared = torch.where((targets != IGNORED)[:, None], logits.to(checks.statistics_dtype(logits)), 0.0)
    return _rows(cleared, targets, temperature, entropy)


def _rows(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """The row pass; logits are float32 or float64 and finite where ignored."""
    kept = targets != IGNORED
    everything = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    found = everything.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    logprobs = torch.where(kept, found, 0.0)
    if not entropy:
        return logprobs, None
    finite = everything.masked_fill(everything == -torch.inf, 0.0)  # 0·log 0 = 0
    return logprobs, torch.where(kept, -(everything.exp() * finite).sum(-1), 0.0)


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float) -> None:
    """Raise ``ValueError`` unless these make a linear head and its labels."""
    checks.floating(hidden, "hidden", (-1, -1))
    checks.floating(weight, "weight", (-1, hidden.shape[1]), hidden)
    checks.floating(bias, "bias", (len(weight),), hidden)
    checks.expect(weight.dtype == hidden.dtype, "weight", str(hidden.dtype), weight.dtype)
    _check_targets(targets, hidden, len(weight), temperature)


def _check_targets(targets: Tensor, like: Tensor, vocabulary: int, temperature: float) -> None:
    checks.shaped(targets, "targets", (len(like),), like)
    checks.expect(targets.dtype == torch.int64, "targets", "int64", targets.dtype)
    checks.expect(temperature > 0, "temperature", "a number > 0", temperature)
    if torch.compiler.is_compiling() or len(targets) == 0:
        return
    wrong = (targets != IGNORED) & ((targets < 0) | (targets >= vocabulary))
    if bool(wrong.any()):
        expected = f"labels from 0 to {vocabulary - 1}, or {IGNORED}"
        checks.expect(False, "targets", expected, int(targets[wrong][0]))


TOKEN_LOGPROBS = Op("token_logprobs", _token_logprobs)
FROM_LOGITS = Op("logprobs_from_logits", _from_logits)
