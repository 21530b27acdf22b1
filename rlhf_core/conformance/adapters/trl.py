"""TRL: the losses inside its trainers, run with stand-ins for what they read of themselves; made for TRL 1.16.

B rows, T slots each, P prompts.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..signatures import Implementation
from . import trl_fused, trl_grpo, trl_preference
from .stand_in import accelerator, metrics

VARIANTS = ("trl", "trl.fused")
"""The second has the log-probs of the fused head that its trainers put on a model, and nothing else."""

CALLS = {
    "kl": "GRPOTrainer._compute_loss(beta=1, advantages=0), a token a call; k3 is all it has",
    "policy_loss": "GRPOTrainer._compute_loss; loss_type bnpo (token mean), dapo (token mean, global count), grpo "
    "(sequence mean), dr_grpo (constant), cispo with epsilon_high = 1 + clip_high; dual_clip is delta",
    "ranking_loss": "RewardTrainer.compute_loss; untied pairs are all it has",
    "preference_loss": "DPOTrainer._compute_loss with loss_type sigmoid, hinge, ipo; experimental "
    "ORPOTrainer.get_batch_loss_metrics; experimental CPOTrainer.get_batch_loss_metrics(simpo, cpo_alpha=0)",
    "group_advantages": "GRPOTrainer / RLOOTrainer._generate_and_score_completions with a stand-in for generation; "
    "scale_rewards=group; it makes them in float32",
    "logprobs": "trainer.utils.selective_log_softmax, row_mask where the target is −100",
}


def implementation(variant: str) -> Implementation:
    """One column.

    Raises:
        NotImplementedError: it is not installed.
    """
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise NotImplementedError("not installed (pip install trl)") from None
    if variant == "trl.fused":
        call = {"logprobs": "trainer.utils.add_fused_lm_head on a stand-in whose head is the identity"}
        return Implementation(variant, {"logprobs": trl_fused.logprobs}, found, call, float32=True)
    functions: dict[str, Callable[..., Any]] = {
        "kl": trl_grpo.kl,
        "policy_loss": trl_grpo.policy_loss,
        "group_advantages": trl_grpo.group_advantages,
        "ranking_loss": ranking_loss,
        "preference_loss": trl_preference.preference_loss,
        "logprobs": logprobs,
    }
    return Implementation(variant, functions, found, CALLS)


def ranking_loss(scores: list[Tensor], ranks: list[Tensor]) -> Tensor:
    """``RewardTrainer.compute_loss``; the model is a stand-in that gives the scores, chosen first."""
    if any(len(rank) != 2 or rank[0] == rank[1] for rank in ranks):
        raise NotImplementedError("RewardTrainer takes untied pairs alone")
    trainer = import_module("trl.trainer.reward_trainer").RewardTrainer
    order = [int(rank[0] > rank[1]) for rank in ranks]
    pairs = [torch.stack([s[first], s[1 - first]]) for s, first in zip(scores, order, strict=True)]
    logits = torch.stack(pairs).T.reshape(-1, 1)
    self = SimpleNamespace(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=accelerator(), _metrics=metrics(), _total_train_tokens=0,
    )  # fmt: skip
    loss: Tensor = trainer.compute_loss(self, lambda **_: SimpleNamespace(logits=logits), {})
    return loss


def logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """``selective_log_softmax``."""
    utils: Any = import_module("trl.trainer.utils")
    row_mask = targets != -100
    found: Tensor = utils.selective_log_softmax(logits, targets.clamp(min=0), temperature, row_mask)
    return found
