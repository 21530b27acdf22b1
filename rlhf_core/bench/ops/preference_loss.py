"""``preference_loss``: DPO on summed log-probs of pairs.

B pairs. Outputs: ``loss``, with gradients of ``chosen`` and ``rejected``; and ``chosen_reward``, ``rejected_reward``,
``reward_margin``, ``accuracy`` where an implementation has them.

Bytes: four floats a pair are read, two gradients written.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work

INPUTS = ("chosen", "rejected", "ref_chosen", "ref_rejected")


class PreferenceLoss(Operation):
    """kind="dpo"; one layout, for nothing is per token."""

    name = "preference_loss"
    dims = ("pairs",)
    presets: ClassVar = {
        "ci": ("64", "1024"),
        "dpo": ("8", "64", "512", "4096", "65536"),
        "gpu": ("64", "1048576"),
    }
    learnt = ("chosen", "rejected")
    required = ("loss",)
    sequences = False
    options: ClassVar = {"beta": 0.1}

    def lengths(self, sizes: tuple[int, ...], how: str, generator: torch.Generator) -> list[int]:
        """A pair each: there is nothing to be ragged."""
        return [1] * sizes[0]

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Sums over some hundred tokens."""
        chosen, rejected = -100 - 50 * torch.rand(2, len(lengths), generator=generator)
        drift = 10 * torch.randn(2, len(lengths), generator=generator)
        found = {
            "chosen": chosen,
            "rejected": rejected,
            "ref_chosen": chosen - drift[0],
            "ref_rejected": rejected - drift[1],
        }
        return {name: tensor.to(dtype) for name, tensor in found.items()}

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        inputs = (case.packed[name] for name in INPUTS)
        loss, metrics = kernels.preference_loss(*inputs, beta=case.number("beta"), backend=backend)
        return {"loss": loss, **metrics}

    def work(self, case: Case, mode: str) -> Work:
        """Four floats in, two gradients out."""
        pairs, width = len(case.packed["chosen"]), case.packed["chosen"].element_size()
        return Work(pairs * (len(INPUTS) + (mode != "fwd") * 2) * width)


OPERATION = PreferenceLoss()
