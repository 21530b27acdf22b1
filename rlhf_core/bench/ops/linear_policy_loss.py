"""``linear_policy_loss``: PPO's clipped policy loss from the last hidden states, with the entropy for the log.

N tokens, H hidden size, V vocabulary. Outputs: ``loss``, with gradients of ``hidden`` and ``weight``; and the metrics
``policy_loss``, ``entropy``, ``approx_kl``, ``clip_frac``, ``ratio_mean``, ``ratio_max`` where an implementation has
them.

A shape's last number is the percentage of tokens that the policy chose: 100 is a batch of responses alone; 40 is one
with prompts, whose tokens are masked, in front.

Flops: a product forward for the chosen tokens, and two backward for those of them that are not clipped: the others'
gradient is 0. Bytes: hidden and weight are read, and their gradients written.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from .. import policy_inputs
from ..case import Case
from ..operation import Operation, Work
from .token_logprobs import head, products, statistics

CLIP = 0.2
INSIDE, OUTSIDE, CLIPPED = 0.1, (0.35, 0.5), 0.1
"""Log-ratios are drawn within ±INSIDE, and one in ten OUTSIDE: logits kept in bfloat16 move a log-prob by some 0.05,
which may not bring a ratio to the other side of its clip."""
ROWS = 1024
"""that logits are made for at a time"""


class LinearPolicyLoss(Operation):
    """Token mean; the advantages are whitened already."""

    name = "linear_policy_loss"
    dims = ("tokens", "hidden", "vocabulary", "percent_chosen")
    presets: ClassVar = {
        "ci": ("256x64x1000x40",),
        "logprobs": ("4096x256x4096x100", "4096x256x4096x40", "2048x576x49152x100", "2048x576x49152x40"),
        "gpu-logprobs": ("8192x4096x131072x100", "8192x4096x131072x40"),
    }
    learnt = ("hidden", "weight")
    required = ("loss",)
    options: ClassVar = {"clip": CLIP}
    sequences = False

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """One token each: the loss is a mean over tokens."""
        return [1] * sizes[0]

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """All but ``old_logprobs``, which follow; until then the log-ratios are in their place."""
        tokens, width, vocabulary, percent = sizes
        chosen = torch.zeros(tokens, dtype=torch.bool)
        chosen[torch.randperm(tokens, generator=generator)[: max(1, tokens * min(percent, 100) // 100)]] = True
        return {
            **head(tokens, width, vocabulary, dtype, generator),
            "advantages": policy_inputs.advantages(tokens, statistics(dtype), generator),
            "old_logprobs": _log_ratios(tokens, generator).to(statistics(dtype)),
            "mask": chosen,
        }

    def case_of(self, sizes: tuple[int, ...], inputs: Mapping[str, Tensor]) -> Case:
        """With ``old_logprobs`` at the wanted ratios to the log-probs of these hidden states.

        ``live`` is no input of the op: which tokens have a gradient.
        """
        x, ratios, new = inputs, inputs["old_logprobs"], _logprobs(inputs)
        clipped = torch.where(x["advantages"] > 0, ratios > INSIDE, ratios < -INSIDE)
        made = {"old_logprobs": (new - ratios).to(ratios.dtype), "live": x["mask"] & ~clipped}
        return super().case_of(sizes, {**inputs, **made})

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x, clip = case.packed, case.number("clip")
        loss, metrics = kernels.linear_policy_loss(
            x["hidden"], x["weight"], x["targets"], x["old_logprobs"], x["advantages"], mask=x["mask"], entropy=True,
            clip_low=clip, clip_high=clip, backend=backend,
        )  # fmt: skip
        unused = ("kl", "value_loss", "value_clip_frac")
        return {"loss": loss} | {name: metric for name, metric in metrics.items() if name not in unused}

    def work(self, case: Case, mode: str) -> Work:
        """A product of the chosen tokens, two of the live ones."""
        x = case.packed
        forward, backward = products(case, int(x["mask"].sum())), 2 * products(case, int(x["live"].sum()))
        flops = {"fwd": forward, "bwd": backward, "full": forward + backward}[mode]
        return Work((x["hidden"].nbytes + x["weight"].nbytes) * (1 if mode == "fwd" else 2), flops)


def _log_ratios(tokens: int, generator: torch.Generator) -> Tensor:
    """``[N]`` of new to old; away from the clip."""
    near, far, sign, which = torch.rand(4, tokens, generator=generator).unbind()
    low, high = OUTSIDE
    outside = torch.where(sign < 0.5, -1.0, 1.0) * (low + (high - low) * far)
    return torch.where(which < CLIPPED, outside, INSIDE * (2 * near - 1))


def _logprobs(x: Mapping[str, Tensor]) -> Tensor:
    """``[N]``, with few logits at a time."""
    rows = zip(torch.split(x["hidden"], ROWS), torch.split(x["targets"], ROWS), strict=True)
    return torch.cat([kernels.token_logprobs(h, x["weight"], t, backend="eager") for h, t in rows])


OPERATION = LinearPolicyLoss()
