"""The losses as frameworks run them: padded rectangles, a pointwise op at a time, masked means.

B sequences, T tokens each. Names that begin with an underscore are a framework's own metrics: computed, not compared.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case, widened

from .eager_gae import INVALID_LOGPROB, masked_mean

Run = Callable[[], dict[str, Tensor]]


def ppo_loss(case: Case) -> Run:
    """TRL's PPOTrainer as it was, from ``new_logprobs`` to the statistics (trl/trainer/ppo_trainer.py).

    The advantages are whitened already, where they are made. Its entropy is of the logits, which are not here.
    """
    x = case.padded
    clip, value_clip, value_coef = (case.number(name) for name in ("clip", "value_clip", "value_coef"))
    mask, padding = x["mask"], ~x["mask"]
    whitened = (widened(x["advantages"]) - x["mean"]) * torch.rsqrt(x["var"] + 1e-8)
    advantages = torch.masked_fill(whitened, padding, 0)
    old_logprobs, old_values, returns = (widened(x[name]) for name in ("old_logprobs", "old_values", "returns"))
    old_logprobs = torch.masked_fill(old_logprobs, padding, INVALID_LOGPROB)

    def run() -> dict[str, Tensor]:
        logprobs = torch.masked_fill(widened(x["logprobs"]), padding, INVALID_LOGPROB)
        values = torch.masked_fill(widened(x["values"]), padding, 0)
        clipped_values = torch.clamp(values, old_values - value_clip, old_values + value_clip)
        free_errors = torch.square(values - returns)
        clipped_errors = torch.square(clipped_values - returns)
        value_loss = 0.5 * masked_mean(torch.max(free_errors, clipped_errors), mask)
        value_clip_frac = masked_mean((clipped_errors > free_errors).to(values.dtype), mask)
        difference = logprobs - old_logprobs
        ratio = torch.exp(difference)
        free = -advantages * ratio
        clipped = -advantages * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
        policy_loss = masked_mean(torch.max(free, clipped), mask)
        loss = policy_loss + value_coef * value_loss
        with torch.no_grad():
            clip_frac = masked_mean((clipped > free).to(ratio.dtype), mask)
            approx_kl = 0.5 * (difference**2).mean()
            ratio_mean = ratio.mean()
        return {
            "loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "clip_frac": clip_frac,
            "value_clip_frac": value_clip_frac, "_approx_kl": approx_kl, "_ratio_mean": ratio_mean,
        }  # fmt: skip

    return run


def grpo_loss(case: Case) -> Run:
    """TRL 1.16's GRPOTrainer._compute_loss from the per-token log-probs on, loss_type="dapo", beta > 0."""
    x = case.padded
    clip_low, clip_high, kl_coef = (case.number(name) for name in ("clip_low", "clip_high", "kl_coef"))
    mask = x["mask"].to(torch.int64)
    old_logprobs, ref_logprobs = widened(x["old_logprobs"]), widened(x["ref_logprobs"])
    tokens = mask.sum()

    def run() -> dict[str, Tensor]:
        logprobs = widened(x["logprobs"])
        advantages = widened(x["group_advantages"]).unsqueeze(1)
        ratio = torch.exp(logprobs - old_logprobs)
        kl = torch.exp(ref_logprobs - logprobs) - (ref_logprobs - logprobs) - 1
        clipped_ratio = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
        per_token = -torch.min(ratio * advantages, clipped_ratio * advantages)
        per_token = per_token + kl_coef * kl
        loss = (per_token * mask).sum() / tokens.clamp(min=1.0)
        with torch.no_grad():
            low = (ratio < 1 - clip_low) & (advantages < 0)
            high = (ratio > 1 + clip_high) & (advantages > 0)
            either = low | high
            means = [masked_mean(metric.to(kl.dtype), mask) for metric in (low, high, either)]
            by_sequence = [(metric.to(kl.dtype) * mask).sum(-1) / mask.sum(-1) for metric in (low, high)]
        return {
            "loss": loss, "kl": masked_mean(kl.detach(), mask), "clip_frac": means[2], "_low": means[0],
            "_high": means[1], "_low_min": by_sequence[0].min(), "_high_max": by_sequence[1].max(),
        }  # fmt: skip

    return run


def ranking_loss(case: Case) -> Run:
    """Open-Assistant's RMLoss (model_training/losses.py), which does train on K ranked responses: a prompt at a time.

    Its data bring the responses in the order of their ranks: untimed. Its penalty on large scores is left out. What
    most frameworks do instead, a forward pass for each side of each pair, costs the model K − 1 times as much.
    """
    offsets, scores = case.packed["cu_seqlens"].tolist(), case.packed["scores"]
    ranks = case.packed["ranks"].tolist()
    order = [place for begin, end in pairwise(offsets) for place in sorted(range(begin, end), key=ranks.__getitem__)]
    best_first = torch.tensor(order, device=scores.device)

    def run() -> dict[str, Tensor]:
        ordered = widened(scores)[best_first]
        losses = []
        for begin, end in pairwise(offsets):
            if end - begin > 1:
                pairs = torch.combinations(torch.arange(end - begin, device=scores.device), 2)
                better, worse = ordered.take(begin + pairs[:, 0]), ordered.take(begin + pairs[:, 1])
                losses.append((-F.logsigmoid(better - worse)).mean())
        return {"loss": torch.stack(losses).mean()}

    return run


def preference_loss(case: Case) -> Run:
    """DPO as OpenRLHF's DPOLoss and TRL's DPOTrainer have it, with the means they log."""
    x, beta = case.packed, case.number("beta")

    def run() -> dict[str, Tensor]:
        chosen, rejected, ref_chosen, ref_rejected = (
            widened(x[name]) for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")
        )
        logits = (chosen - rejected) - (ref_chosen - ref_rejected)
        loss = (-F.logsigmoid(beta * logits)).mean()
        chosen_reward = beta * (chosen - ref_chosen).detach()
        rejected_reward = beta * (rejected - ref_rejected).detach()
        return {
            "loss": loss, "chosen_reward": chosen_reward.mean(), "rejected_reward": rejected_reward.mean(),
            "reward_margin": (chosen_reward - rejected_reward).mean(),
            "accuracy": (chosen_reward > rejected_reward).to(chosen.dtype).mean(),
        }  # fmt: skip

    return run
