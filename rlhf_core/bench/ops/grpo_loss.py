"""``grpo_loss``: the clipped policy loss with a KL term (k3) in the loss, and one advantage a response.

N packed tokens, B responses. Outputs: ``loss``, with the gradient of ``logprobs``; and the metrics ``policy_loss``,
``kl``, ``approx_kl``, ``clip_frac``, ``ratio_mean``, ``ratio_max`` where an implementation has them.

Bytes: logprobs, old_logprobs, ref_logprobs, advantages and the mask are read, a gradient is written. The advantages
come as ``[N]``, as ours takes them, and as ``group_advantages [B]``, as frameworks do.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from .. import policy_inputs
from ..case import Case
from ..operation import Operation, Work, offsets

INPUTS = ("logprobs", "old_logprobs", "ref_logprobs", "advantages")


class GRPOLoss(Operation):
    """Token mean (DAPO's, and TRL's default)."""

    name = "grpo_loss"
    dims = ("responses", "tokens")
    presets: ClassVar = {
        "ci": ("16x128", "64x512"),
        "grpo-long": ("16x4096", "64x8192", "16x32768", "64x32768"),
        "gpu": ("64x1024", "512x32768"),
    }
    per_token = (*INPUTS, "mask")
    learnt = ("logprobs",)
    required = ("loss",)
    options: ClassVar = {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.04}

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Groups are not needed for the loss: advantages are given."""
        tokens = sum(lengths)
        found = policy_inputs.log_probs(tokens, dtype, generator, (0.2, 0.28))
        group_advantages = policy_inputs.advantages(len(lengths), dtype, generator)
        near = found["old_logprobs"].float() + torch.randn(tokens, generator=generator) * 0.1
        return found | {
            "ref_logprobs": near.to(dtype),
            "group_advantages": group_advantages,
            "advantages": group_advantages.repeat_interleave(torch.tensor(lengths)),
            "mask": torch.ones(tokens, dtype=torch.bool),
            "cu_seqlens": offsets(lengths),
        }

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        loss, metrics = kernels.grpo_loss(
            x["logprobs"], x["old_logprobs"], x["advantages"], mask=x["mask"], ref_logprobs=x["ref_logprobs"],
            clip_low=case.number("clip_low"), clip_high=case.number("clip_high"), kl_coef=case.number("kl_coef"),
            backend=backend,
        )  # fmt: skip
        return {"loss": loss} | {name: metric for name, metric in metrics.items() if name != "entropy"}

    def work(self, case: Case, mode: str) -> Work:
        """Four floats and a mask in, a gradient out."""
        tokens, width = len(case.packed["logprobs"]), case.packed["logprobs"].element_size()
        return Work(tokens * (len(INPUTS) * width + 1 + (mode != "fwd") * width))


OPERATION = GRPOLoss()
