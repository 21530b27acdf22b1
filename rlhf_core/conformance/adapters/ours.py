"""Our kernels behind the padded signatures: rows become packed sequences, masked slots masked tokens.

B rows, T slots each, V vocabulary; N = B·T packed tokens.
"""

from typing import Any

import torch
from torch import Tensor

from ... import __version__, advantages, kernels
from ...kernels.policy_loss import whitened
from ...kernels.ppo_loss import OP
from ..signatures import SIGNATURES, Implementation

VARIANTS = ("ours", *(f"ours.{backend}" for backend in ("eager", "cpu", "triton", "cuda")))
"""``ours`` is what is chosen by itself, the others are one backend."""

NO_CHOICE = {"group_advantages": "rlhf_core.advantages.group_advantages, leave_one_out: plain PyTorch, one backend"}
CALLS = {
    "gae": "kernels.shaped_gae",
    "whiten": "mean and var of kernels.shaped_gae(λ=0, no values), kernels.whitened",
    "kl": "kernels.grpo_loss(kl_coef=1, advantages=0), a token a call",
    "policy_loss": "kernels.ppo_loss; kernels.grpo_loss for level=sequence and kind=cispo",
    "value_loss": "kernels.ppo_loss(value_coef=1, advantages=0)",
    "ranking_loss": "kernels.ranking_loss",
    "preference_loss": "kernels.preference_loss",
    "logprobs": "kernels.logprobs_from_logits",
}


def implementation(variant: str) -> Implementation:
    """One column.

    Raises:
        NotImplementedError: this machine does not have the backend.
    """
    backend = variant.partition(".")[2] or None
    reasons = [row["reason"] for row in kernels.status() if (row["op"], row["backend"]) == ("ppo_loss", backend)]
    if any(reasons):
        raise NotImplementedError(*reasons)
    ours = Ours(backend)
    functions = {name: _offered(getattr(ours, name)) for name in SIGNATURES}
    on = "cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu"
    return Implementation(variant, functions, __version__, CALLS | NO_CHOICE, float32=_narrow(backend), device=on)


def _narrow(backend: str | None) -> bool:
    """Whether its kernels take no float64."""
    dtypes = OP.implementations[backend].dtypes if backend else ()
    return bool(dtypes) and torch.float64 not in dtypes


def _offered(function: Any) -> Any:
    """A backend that cannot compute a call does not offer it."""

    def call(**arguments: Any) -> Any:
        try:
            return function(**arguments)
        except kernels.BackendError as error:
            raise NotImplementedError(str(error)) from error

    return call


class Ours:
    """The functions, on one backend (None: the fastest that can)."""

    def __init__(self, backend: str | None) -> None:
        self.backend = backend

    def gae(
        self, rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float,
        bootstrap: Tensor | None = None, scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """``shaped_gae``."""
        scores = values.new_zeros(len(values)) if scores is None else scores
        found = kernels.shaped_gae(
            scores, values.flatten(), rows_of(mask), mask=mask.flatten(), rewards=rewards.flatten(), gamma=gamma,
            lam=lam, bootstrap=bootstrap, backend=self.backend,
        )  # fmt: skip
        return found.advantages.view_as(values), found.returns.view_as(values)

    def whiten(self, values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        """With λ = 0 and no values an advantage is the reward, and the statistics are those of the rewards."""
        nothing = torch.zeros_like(values).flatten()
        found = kernels.shaped_gae(
            values.new_zeros(len(values)), nothing, rows_of(mask), mask=mask.flatten(), rewards=values.flatten(),
            lam=0.0, backend=self.backend,
        )  # fmt: skip
        return whitened(values, found.mean, found.var, shift_mean=shift_mean)

    def kl(self, logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
        """The KL term of a loss that has no other, a token a call: it is a sum inside."""
        pairs = zip(logprobs.reshape(-1, 1), ref_logprobs.reshape(-1, 1), strict=True)
        estimates = [
            kernels.grpo_loss(
                new, new.detach(), torch.zeros_like(new), ref_logprobs=ref, kl_coef=1.0, kl_estimator=kind,
                backend=self.backend,
            )[0]
            for new, ref in pairs
        ]  # fmt: skip
        return torch.stack(estimates).view_as(logprobs)

    def policy_loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float,
        clip_high: float, dual_clip: float | None = None, level: str = "token", kind: str = "clip",
        aggregate: str = "token", denominator: float | None = None,
    ) -> Tensor:  # fmt: skip
        """``ppo_loss``, and ``grpo_loss`` for what that does not have."""
        tensors = logprobs.flatten(), old_logprobs.flatten(), advantages.flatten()
        same: dict[str, Any] = {
            "mask": mask.flatten(), "clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip,
            "aggregate": aggregate, "denominator": denominator, "cu_seqlens": rows_of(mask), "backend": self.backend,
        }  # fmt: skip
        if level == "token" and kind == "clip":
            return kernels.ppo_loss(*tensors, **same)[0]
        return kernels.grpo_loss(*tensors, kind="cispo" if kind == "cispo" else "grpo", level=level, **same)[0]

    def value_loss(
        self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None
    ) -> Tensor:
        """The value term of ``ppo_loss`` without a policy's."""
        nothing = torch.zeros_like(values).flatten().detach()
        loss, _ = kernels.ppo_loss(
            nothing, nothing, nothing, mask=mask.flatten(), values=values.flatten(), old_values=old_values.flatten(),
            returns=returns.flatten(), value_clip=clip, value_coef=1.0, backend=self.backend,
        )  # fmt: skip
        return loss

    def ranking_loss(self, scores: list[Tensor], ranks: list[Tensor]) -> Tensor:
        """``ranking_loss``."""
        lengths = torch.tensor([0, *map(len, scores)], device=scores[0].device)
        offsets = lengths.cumsum(0, dtype=torch.int32)
        return kernels.ranking_loss(torch.cat(scores), offsets, torch.cat(ranks), backend=self.backend)[0]

    def preference_loss(
        self, chosen: Tensor, rejected: Tensor, chosen_mask: Tensor, rejected_mask: Tensor, beta: float,
        kind: str = "dpo", ref_chosen: Tensor | None = None, ref_rejected: Tensor | None = None,
        label_smoothing: float = 0.0, margin: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """``preference_loss`` of summed log-probs, with lengths where the kind divides by them."""
        lengths: dict[str, Any] = {}
        if kind in ("ipo", "orpo", "simpo"):
            lengths = {"chosen_lengths": chosen_mask.sum(1), "rejected_lengths": rejected_mask.sum(1)}
        loss, _ = kernels.preference_loss(
            summed(chosen, chosen_mask), summed(rejected, rejected_mask),
            None if ref_chosen is None else summed(ref_chosen, chosen_mask),
            None if ref_rejected is None else summed(ref_rejected, rejected_mask),
            beta=beta, kind=kind, label_smoothing=label_smoothing, margin=margin, backend=self.backend, **lengths,
        )  # fmt: skip
        return loss

    def group_advantages(self, scores: Tensor, group: int, kind: str = "grpo") -> Tensor:
        """What the algorithms of that name use."""
        return (advantages.leave_one_out if kind == "rloo" else advantages.group_advantages)(scores, group)

    def logprobs(self, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """``logprobs_from_logits``."""
        found = kernels.logprobs_from_logits(
            logits.flatten(0, 1), targets.flatten(), temperature=temperature, backend=self.backend
        )
        return found.view_as(targets)


def rows_of(mask: Tensor) -> Tensor:
    """``[B+1]`` offsets of rows that lie end to end."""
    return torch.arange(len(mask) + 1, dtype=torch.int32, device=mask.device) * mask.shape[1]


def summed(logprobs: Tensor, mask: Tensor) -> Tensor:
    """``[B]`` over a response's tokens."""
    return torch.where(mask, logprobs, 0.0).sum(1)
