"""``linear_policy_loss`` in C++ (csrc/cpu/head.cpp): three products, as a scalar loss gives its gradients forward.

N packed tokens, H hidden size, V vocabulary. For some rows at a time: logits, which are kept; log-probs; their slopes
by ``ppo_loss`` on these rows alone; and from the kept logits, in place of a recomputation, the two other products, for
rows whose slope is not 0. Masked tokens are left out from the start. Weights of tokens must not depend on other rows:
they do not with a given denominator, except with aggregate="sequence", which is composed of the two ops.
"""

from typing import Any

import torch
from torch import Tensor

from .. import checks, linear_policy_loss
from ..linear_policy_loss import PER_TOKEN, PPOOptions
from ..logprobs import IGNORED, token_logprobs
from ..policy_loss import METRICS, Metrics
from ..ppo_loss import ppo_loss
from .logprobs import no_columns
from .products import widens
from .scalars import add_cpu

KEPT_BYTES = 64 * 2**20
"""Of logits at a time: memory does not grow with the tokens."""


def _run(
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
    given, kept = options.get("mask"), targets != IGNORED
    mask = kept if given is None else kept & given
    targets = torch.where(mask, targets, IGNORED)
    wanted = entropy or options.get("entropy_coef", 0.0) != 0
    rest: dict[str, Any] = {**options, "mask": mask}
    if widens(hidden.dtype):
        hidden, weight = hidden.float(), weight.float()
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    if rest.get("aggregate") == "sequence" or not trained or torch.compiler.is_compiling():
        logprobs, entropies = _composed(hidden, weight, targets, bias, temperature, wanted)
        return ppo_loss(logprobs, old_logprobs, advantages, entropy=entropies, backend="cpu", **rest)
    rest["denominator"] = _denominator(rest, mask)
    values = rest.pop("values", None)
    loss, *metrics = _Loss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, values, targets, old_logprobs, advantages, temperature, wanted, rest
    )
    return loss, dict(zip(METRICS, metrics, strict=True))


def _composed(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    if not entropy:
        return token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature, backend="cpu"), None
    return token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature, entropy=True, backend="cpu")


def _denominator(options: dict[str, Any], mask: Tensor) -> "float | Tensor":
    """The count that all rows together are divided by."""
    given: float | Tensor | None = options.get("denominator")
    return float(max(int(mask.sum()), 1)) if given is None else given


class _Loss(torch.autograd.Function):
    """The loss and its metrics; gradients wait, for an upstream gradient of 1."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        targets: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        temperature: float,
        entropy: bool,
        options: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        head = _Head(hidden, weight, bias, targets, temperature, entropy)
        fixed = {name: options.pop(name) for name in PER_TOKEN if options.get(name) is not None}
        given = {"old_logprobs": old_logprobs, "advantages": advantages, **fixed}
        mask = options.pop("mask")
        options.pop("cu_seqlens", None)  # of no use without aggregate="sequence"
        logprobs, entropies = head.run(lambda rows, *found: _slopes(rows, *found, given=given, options=options))
        with torch.enable_grad():
            moving = None if values is None else values.detach().requires_grad_()
            loss, metrics = ppo_loss(
                logprobs, old_logprobs, advantages, mask=mask, values=moving,
                entropy=entropies if entropy else None, **fixed, **options, backend="cpu",
            )  # fmt: skip
            grad_values = None if moving is None else torch.autograd.grad(loss, moving)[0]
        ctx.save_for_backward(*head.gradients(), grad_values)
        ctx.mark_non_differentiable(*metrics.values())
        return loss.detach(), *metrics.values()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if x is None else (x if upstream[0] == 1 else x * upstream[0]) for x in ctx.saved_tensors]
        return *scaled, *[None] * 6


def _slopes(
    rows: Tensor, logprobs: Tensor, entropies: Tensor | None, *, given: dict[str, Tensor], options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Derivatives of the loss by these rows' log-probs and entropies."""
    of_rows: dict[str, Any] = {name: tensor.detach()[rows] for name, tensor in given.items()}
    with torch.enable_grad():
        moving = [x.detach().requires_grad_() for x in (logprobs, entropies) if x is not None]
        loss, _ = ppo_loss(
            moving[0], of_rows.pop("old_logprobs"), of_rows.pop("advantages"),
            entropy=moving[1] if len(moving) > 1 else None, **of_rows, **options, backend="cpu",
        )  # fmt: skip
        found = torch.autograd.grad(loss, moving)
    entropy_coef = options.get("entropy_coef", 0.0)
    return found[0], found[1] if len(found) > 1 and entropy_coef else None


class _Head:
    """The head's rows in pieces, and the gradients they add up to."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, entropy: bool
    ) -> None:
        self.hidden, self.weight, self.targets = hidden.detach(), weight.detach(), targets
        self.bias = None if bias is None else bias.detach()
        self.temperature, self.entropy = temperature, entropy
        self.wide = checks.statistics_dtype(hidden)
        (words, size), rounded = weight.shape, (-(-weight.shape[0] // 64) * 64, -(-weight.shape[1] // 32) * 32)
        self.shape = words, size
        self.grad_weight = weight.new_zeros(rounded, dtype=self.wide)
        self.grad_bias = None if bias is None else weight.new_zeros(words, dtype=self.wide)
        self.grad_hidden = torch.zeros_like(self.hidden)

    def run(self, slopes: Any) -> tuple[Tensor, Tensor | None]:
        """``[N]`` log-probs and entropies; ``slopes`` gives the loss's derivatives by those of some rows."""
        size = self.wide.itemsize * max(len(self.weight), 1)
        piece = max(256, KEPT_BYTES // size // 128 * 128)
        logprobs = self.hidden.new_zeros(len(self.hidden), dtype=self.wide)
        entropies = torch.zeros_like(logprobs) if self.entropy else None
        packed = torch.ops.rlhf.pack_head(self.weight)
        for rows in torch.split((self.targets != IGNORED).nonzero()[:, 0], piece):
            hidden, targets = self.hidden[rows], self.targets[rows]
            found, spread, lse, logits = torch.ops.rlhf.head_rows(
                hidden, self.weight, targets, self.bias, self.temperature, self.entropy
            )
            by_logprob, by_entropy = slopes(rows, found, spread if self.entropy else None)
            self.grad_hidden[rows] = torch.ops.rlhf.head_rows_backward(
                by_logprob, by_entropy, hidden, self.weight, targets, lse, spread, logits, packed,
                self.temperature, self.grad_weight, self.grad_bias,
            )  # fmt: skip
            logprobs[rows] = found
            if entropies is not None:
                entropies[rows] = spread
        return logprobs, entropies

    def gradients(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of hidden, weight and bias."""
        words, size = self.shape
        grad_bias = None if self.bias is None or self.grad_bias is None else self.grad_bias.to(self.bias.dtype)
        return self.grad_hidden, self.grad_weight[:words, :size].to(self.weight.dtype), grad_bias


add_cpu(linear_policy_loss.OP, _run, no_columns)
