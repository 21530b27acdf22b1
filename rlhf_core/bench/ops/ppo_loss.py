"""``ppo_loss``: clipped policy and value losses on whitened advantages.

N packed tokens. Outputs: ``loss``, with gradients of ``logprobs`` and ``values``; and the metrics ``policy_loss``,
``value_loss``, ``approx_kl``, ``clip_frac``, ``ratio_mean``, ``ratio_max``, ``value_clip_frac`` where an implementation
has them.

Bytes: logprobs, old_logprobs, advantages, values, old_values, returns and the mask are read, two gradients written.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from .. import policy_inputs
from ..case import Case
from ..operation import Operation, Work, offsets

INPUTS = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")


class PPOLoss(Operation):
    """Token mean, as PPO has it; the KL is in the reward."""

    name = "ppo_loss"
    dims = ("sequences", "tokens")
    presets: ClassVar = {
        "ci": ("16x128", "64x512"),
        "rlhf-7b": ("64x512", "64x1024", "256x2048", "2048x2048"),
        "gpu": ("64x1024", "8192x2048"),
    }
    per_token = (*INPUTS, "mask")
    learnt = ("logprobs", "values")
    required = ("loss",)
    options: ClassVar = {"clip": 0.2, "value_clip": 0.2, "value_coef": 0.5}

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """As after an epoch: ratios and values have moved."""
        tokens = sum(lengths)
        advantages = policy_inputs.advantages(tokens, dtype, generator)
        statistics = torch.promote_types(dtype, torch.float32)
        return {
            **policy_inputs.log_probs(tokens, dtype, generator, (0.2, 0.2)),
            **policy_inputs.values(tokens, dtype, generator, 0.2),
            "advantages": advantages,
            "mean": advantages.double().mean().to(statistics),
            "var": advantages.double().var(correction=0).to(statistics),
            "mask": torch.ones(tokens, dtype=torch.bool),
            "cu_seqlens": offsets(lengths),
        }

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x, clip = case.packed, case.number("clip")
        loss, metrics = kernels.ppo_loss(
            x["logprobs"], x["old_logprobs"], x["advantages"], mask=x["mask"], values=x["values"],
            old_values=x["old_values"], returns=x["returns"], clip_low=clip, clip_high=clip,
            value_clip=case.number("value_clip"), value_coef=case.number("value_coef"), whiten=(x["mean"], x["var"]),
            backend=backend,
        )  # fmt: skip
        return {"loss": loss} | {name: metric for name, metric in metrics.items() if name not in ("entropy", "kl")}

    def work(self, case: Case, mode: str) -> Work:
        """Six floats and a mask in, two gradients out."""
        tokens, width = len(case.packed["logprobs"]), case.packed["logprobs"].element_size()
        return Work(tokens * (len(INPUTS) * width + 1 + (mode != "fwd") * 2 * width))


OPERATION = PPOLoss()
