"""``shaped_gae``: advantages and returns under a KL-shaped reward, with the statistics that whiten them.

N packed tokens, B sequences. Outputs: ``returns`` and ``kl`` ``[N]``, and either ``advantages [N]`` with scalars
``mean`` and ``var``, or ``whitened [N]``: frameworks whiten in a pass of its own, ours leaves that to the loss.
Compared are the returns and the whitened advantages.

Bytes: values, logprobs, ref_logprobs and the mask are read; advantages, returns and kl are written.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ... import kernels
from ..case import Case
from ..operation import Operation, Work, offsets


class ShapedGAE(Operation):
    """Every token is the policy's, so that padding is at the end only: what frameworks' loops can do too."""

    name = "shaped_gae"
    dims = ("sequences", "tokens")
    presets: ClassVar = {
        "ci": ("16x128", "64x512"),
        "rlhf-7b": ("64x512", "64x2048", "256x2048", "2048x2048"),
        "gpu": ("64x1024", "8192x2048"),
    }
    per_token = ("values", "logprobs", "ref_logprobs", "mask")
    required = ("whitened", "returns")
    options: ClassVar = {"gamma": 1.0, "lam": 0.95, "kl_coef": 0.05}

    def inputs(
        self, sizes: tuple[int, ...], lengths: list[int], dtype: torch.dtype, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Values near the scores', log-probs near the reference's."""
        tokens = sum(lengths)
        ref_logprobs = -torch.rand(tokens, generator=generator) * 4
        found = {
            "scores": torch.randn(len(lengths), generator=generator),
            "values": torch.randn(tokens, generator=generator) * 0.5,
            "logprobs": ref_logprobs + torch.randn(tokens, generator=generator) * 0.1,
            "ref_logprobs": ref_logprobs,
        }
        valid = torch.ones(tokens, dtype=torch.bool)
        return {name: t.to(dtype) for name, t in found.items()} | {"mask": valid, "cu_seqlens": offsets(lengths)}

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        gae = kernels.shaped_gae(
            x["scores"], x["values"], x["cu_seqlens"], mask=x["mask"], logprobs=x["logprobs"],
            ref_logprobs=x["ref_logprobs"], gamma=case.number("gamma"), lam=case.number("lam"),
            kl_coef=case.number("kl_coef"), backend=backend,
        )  # fmt: skip
        found = gae._asdict()
        del found["count"]
        return found

    def work(self, case: Case, mode: str) -> Work:
        """Three floats and a mask in, three floats (never narrower than float32) out."""
        tokens, width = len(case.packed["values"]), case.packed["values"].element_size()
        return Work(tokens * (3 * width + 1 + 3 * max(width, 4)))

    def comparable(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whitened advantages from raw ones."""
        if "whitened" in outputs:
            return dict(outputs)
        found = {name: tensor for name, tensor in outputs.items() if name not in ("mean", "var", "advantages")}
        scale = (outputs["var"] + 1e-8).rsqrt()
        return found | {"whitened": (outputs["advantages"] - outputs["mean"]) * scale}


OPERATION = ShapedGAE()
