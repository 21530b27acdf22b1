# mypy: allow-untyped-calls
"""``linear_policy_loss``: PPO's loss from hidden states, its gradients formed in the forward pass (``head.py``).

N packed tokens, H hidden size, V vocabulary, R rows of a chunk; g, h = ∂loss/∂logprobs, ∂loss/∂entropy of ``ppo_loss``.

The g and h of a token follow from its own log-prob once the denominator of the whole batch is known, so logits become
gradients as soon as they are there: three products. Where a weight belongs to whole sequences, a first loop finds the
log-probs, and a second one computes the logits again: four.

Rows whose g and h are 0 (clipped, without an advantage) take part in the products: leaving them out would need their
number on the host.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..checks import statistics_dtype
from ..linear_policy_loss import PER_TOKEN, PPOOptions
from ..logprobs import IGNORED
from ..policy_loss import METRICS, Metrics, Number
from ..ppo_loss import ppo_loss
from . import token_logprobs
from .head import Gradients, Head
from .logprobs import room

OF_VALUES = ("values", "old_values", "returns")


class Loss:
    """``ppo_loss`` of log-probs that are still being found: its slopes at some tokens, at last all of it."""

    def __init__(
        self, old_logprobs: Tensor, advantages: Tensor, kept: Tensor, options: PPOOptions, entropy: bool
    ) -> None:
        self.fixed = {"old_logprobs": old_logprobs, "advantages": advantages, "mask": kept}
        self.options: dict[str, Any] = {**options}
        self.entropy, self.rewards_entropy = entropy, options.get("entropy_coef", 0.0) != 0
        self.by_sequence = options.get("aggregate") == "sequence"
        denominator: Number | None = options.get("denominator")
        if denominator is None and options.get("aggregate", "token") == "token":
            denominator = kept.sum().clamp(min=1)  # of the whole batch, for every chunk
        self.options["denominator"] = denominator
        self.unit = 1 / (max(len(kept), 1) if denominator is None else denominator)  # of most slopes

    def slopes(self, rows: slice, logprobs: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The g and h of these rows, ``[R]``; all rows where weights belong to sequences."""
        unused = {*OF_VALUES, *(() if self.by_sequence else ("cu_seqlens",))}
        options = {name: x for name, x in self.options.items() if name not in unused}
        learnt = [x.detach().requires_grad_() for x in (logprobs, entropy) if x is not None]
        with torch.enable_grad():
            loss, _ = self._of(rows, learnt[0], None if entropy is None else learnt[1], options)
        found = torch.autograd.grad(loss, learnt)
        return found[0], found[1] if self.rewards_entropy else None

    def whole(
        self, logprobs: Tensor, entropy: Tensor | None, values: Tensor | None, learning: bool
    ) -> tuple[Tensor, Metrics, Tensor | None]:
        """Loss, metrics, and where wanted the gradient of ``values``."""
        leaf = None if values is None else values.detach().requires_grad_(learning)
        options = self.options if leaf is None else {**self.options, "values": leaf}
        with torch.enable_grad():
            loss, metrics = self._of(slice(None), logprobs, entropy, options)
        return loss.detach(), metrics, torch.autograd.grad(loss, leaf)[0] if learning and leaf is not None else None

    def _of(
        self, rows: slice, logprobs: Tensor, entropy: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Metrics]:
        here = {name: x[rows] if name in PER_TOKEN and x is not None else x for name, x in options.items()}
        fixed = {name: x[rows] for name, x in self.fixed.items()}
        return ppo_loss(logprobs, **here | fixed, entropy=entropy, backend="triton")


def compute(
    head: Head, loss: Loss, values: Tensor | None, of_head: bool, of_values: bool
) -> tuple[Tensor, Metrics, Gradients, Tensor | None]:
    """Loss, metrics, the head's gradients and that of ``values``, for an upstream gradient of 1."""
    logprobs, top, log_sum, found = room(head.hidden, len(head.hidden), loss.entropy)
    entropy = found if loss.entropy else None
    at_once = of_head and not loss.by_sequence
    for rows in head.chunks():
        logits = head.logits(rows)
        head.read(rows, logits, logprobs, top, log_sum, entropy)
        if at_once:
            above = loss.slopes(rows, logprobs[rows], None if entropy is None else entropy[rows])
            head.differentiate(rows, logits, top, log_sum, entropy, *above)
    if of_head and not at_once:
        g, h = loss.slopes(slice(None), logprobs, entropy)
        for rows in head.chunks():
            above = (g[rows], None if h is None else h[rows])
            head.differentiate(rows, head.logits(rows), top, log_sum, entropy, *above)
    total, metrics, d_values = loss.whole(logprobs, entropy, values, of_values)
    return total, metrics, head.gradients(), d_values


class _LinearPolicyLoss(torch.autograd.Function):
    """The gradients are there already, and are copied times what comes from above.

    At 8192 tokens a copy takes about 1/50 of the three products' time (computed for an H100).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor | None, targets: Tensor,
        temperature: float, loss: Loss, wanted: tuple[bool, bool, bool, bool],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        head = Head(hidden, weight, bias, targets, temperature, wanted[:3], loss.unit)
        total, metrics, gradients, d_values = compute(head, loss, values, any(wanted[:3]), wanted[3])
        ctx.save_for_backward(*gradients, d_values)
        ctx.dtypes = [x.dtype if x is not None else None for x in (hidden, weight, bias, values)]
        ordered = [metrics[name] for name in METRICS]
        ctx.mark_non_differentiable(*ordered)
        return total, *ordered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if x is None else (x * upstream).to(dtype) for x, dtype in pairs), None, None, None, None


def run(
    hidden: Tensor, weight: Tensor, targets: Tensor, old_logprobs: Tensor, advantages: Tensor, bias: Tensor | None,
    temperature: float, entropy: bool, options: PPOOptions,
) -> tuple[Tensor, Metrics]:  # fmt: skip
    """What ``linear_policy_loss.py`` of the folder above defines."""
    mask, kept = options.get("mask"), targets != IGNORED
    kept = kept if mask is None else kept & mask
    wanted_entropy = entropy or options.get("entropy_coef", 0.0) != 0
    if torch.compiler.is_compiling():  # which does not trace a gradient taken inside a forward pass
        logprobs, entropies = token_logprobs.run(hidden, weight, targets, bias, temperature, wanted_entropy)
        whole: PPOOptions = {**options, "mask": kept}
        return ppo_loss(logprobs, old_logprobs, advantages, entropy=entropies, backend="triton", **whole)
    values = options.get("values")
    learnt = (hidden, weight, bias, values)
    wanted = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in learnt)
    loss = Loss(old_logprobs, advantages, kept, options, wanted_entropy)
    # What is masked is not read, as in ppo_loss: no more than what has no label.
    labels = torch.where(kept, targets, IGNORED)
    total, *metrics = _LinearPolicyLoss.apply(*learnt, labels, temperature, loss, wanted)
    return total, dict(zip(METRICS, metrics, strict=True))


def refuses(
    hidden: Tensor, weight: Tensor, targets: Tensor, old_logprobs: Tensor, advantages: Tensor, bias: Tensor | None,
    temperature: float, entropy: bool, options: PPOOptions,
) -> str | None:  # fmt: skip
    """The definition computes the loss in float64 where an input is."""
    given: dict[str, Any] = {**options}
    wide = statistics_dtype(old_logprobs, advantages, *(given.get(name) for name in PER_TOKEN)) == torch.float64
    return "takes float32, not float64" if wide else None
