"""GAE as frameworks run it: padded rectangles, a Python loop over time, whitening in passes of its own.

B sequences, T tokens each.

Source: trl/trainer/ppo_trainer.py as TRL had it until it dropped PPO (steps "compute rewards" and "compute advantages
and returns"); verl's core_algos.compute_gae_advantage_return and OpenRLHF's get_advantages_and_returns follow it. It is
the leanest of the three: verl's loop carries values and advantages across masked tokens, at twice the ops a step. One
difference: the variance is divided by n, not by n − 1, so that the result is that of the others here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_core.bench.case import Case, widened

INVALID_LOGPROB = 1.0


def shaped_gae(case: Case) -> Callable[[], dict[str, Tensor]]:
    """Reward shaping, the loop, whitening."""
    x = case.padded
    gamma, lam, kl_coef = (case.number(name) for name in ("gamma", "lam", "kl_coef"))
    padding = ~x["mask"]

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        logprobs = torch.masked_fill(widened(x["logprobs"]), padding, INVALID_LOGPROB)
        ref_logprobs = torch.masked_fill(widened(x["ref_logprobs"]), padding, INVALID_LOGPROB)
        values = torch.masked_fill(widened(x["values"]), padding, 0)
        kl = logprobs - ref_logprobs
        rewards = -kl_coef * kl
        rows = torch.arange(rewards.size(0), device=rewards.device)
        rewards[rows, x["lengths"] - 1] += widened(x["scores"])

        steps: list[Tensor] = []
        running: Any = 0
        length = rewards.shape[1]
        for t in reversed(range(length)):
            following = values[:, t + 1] if t < length - 1 else 0.0
            delta = rewards[:, t] + gamma * following - values[:, t]
            running = delta + gamma * lam * running
            steps.append(running)
        advantages = torch.stack(steps[::-1], dim=1)
        returns = advantages + values
        whitened = torch.masked_fill(_masked_whiten(advantages, x["mask"]), padding, 0)
        return {"whitened": whitened, "returns": returns, "kl": kl}

    return run


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean where ``mask`` is, as TRL and verl have it."""
    return (values * mask).sum() / mask.sum()


def _masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + 1e-8)
