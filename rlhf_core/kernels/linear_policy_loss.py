"""PPO's loss straight from the last hidden states: ``ppo_loss`` of ``token_logprobs``, as one op.

N packed tokens, H hidden size, V vocabulary. A scalar loss lets a backend form the gradients inside the forward
pass, without the logits ever being whole; the definition here is the plain composition.
"""

from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from . import checks
from .dispatch import Op
from .logprobs import IGNORED, TOKEN_LOGPROBS, check_head
from .policy_loss import Metrics, Number
from .ppo_loss import Moments, ppo_loss

PER_TOKEN = ("values", "old_values", "returns", "ref_logprobs", "importance")
"""Options that are ``[N]``, beside the mask."""


class PPOOptions(TypedDict, total=False):
    """The options of ``ppo_loss`` that do not come out of the head."""

    mask: Tensor | None
    values: Tensor | None
    old_values: Tensor | None
    returns: Tensor | None
    clip_low: float
    clip_high: float
    dual_clip: float | None
    value_clip: float | None
    value_coef: float
    whiten: Moments | None
    shift_mean: bool
    entropy_coef: float
    ref_logprobs: Tensor | None
    kl_coef: float
    kl_estimator: str
    importance: Tensor | None
    aggregate: str
    cu_seqlens: Tensor | None
    denominator: Number | None


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    backend: str | None = None,
    **ppo_options: Unpack[PPOOptions],
) -> tuple[Tensor, Metrics]:
    """``ppo_loss`` of the log-probs of ``targets`` under a linear head.

    Args:
        hidden: ``[N,H]``.
        weight: ``[V,H]``.
        targets: ``[N]`` int64; −100 is masked.
        old_logprobs: ``[N]`` nats.
        advantages: ``[N]``.
        bias: ``[V]``.
        temperature: divides the logits.
        entropy: report the entropy even where ``entropy_coef`` is 0.
        backend: eager, or None for the configured choice.
        ppo_options: those of ``ppo_loss``.

    Returns:
        The loss and metrics of ``ppo_loss``.

    Raises:
        ValueError: a wrong shape, dtype, device, label or option, named.
    """
    check_head(hidden, weight, targets, bias, temperature)
    options: dict[str, Any] = {**ppo_options}
    given = {"old_logprobs": old_logprobs, "advantages": advantages}
    given |= {name: options[name] for name in PER_TOKEN if options.get(name) is not None}
    for name, tensor in given.items():
        checks.floating(tensor, name, (len(hidden),), hidden)
    checks.boolean(ppo_options.get("mask"), "mask", (len(hidden),), hidden)
    return OP(
        backend, hidden, hidden, weight, targets, old_logprobs, advantages, bias, temperature, entropy, ppo_options
    )


def _eager(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    bias: Tensor | None,
    temperature: float,
    entropy: bool,
    options: PPOOptions,
) -> tuple[Tensor, Metrics]:
    """The definition."""
    wanted = entropy or options.get("entropy_coef", 0.0) != 0
    given, kept = options.get("mask"), targets != IGNORED
    mask = kept if given is None else kept & given
    targets = torch.where(mask, targets, IGNORED)  # what a masked row holds is never read
    logprobs, entropies = TOKEN_LOGPROBS("eager", hidden, hidden, weight, targets, bias, temperature, wanted)
    rest: PPOOptions = {**options, "mask": mask}
    return ppo_loss(logprobs, old_logprobs, advantages, entropy=entropies, backend="eager", **rest)


OP = Op("linear_policy_loss", _eager)
