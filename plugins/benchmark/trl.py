"""TRL's GRPO loss, as its trainer computes it, and the head that its trainers put on a model; made for TRL 1.16.

The loss is no function but a method of the trainer, which takes a model. It runs here with stand-ins for the model,
which gives the log-probs, and for what of the trainer it reads. It moves its metrics to the host, as it does in
training. The head is ChunkedLogProbFunction, which makes the logits a tile at a time, and again in the backward.

B responses, T tokens each.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_core.bench.case import Case, widened

OUTPUTS: dict[str, tuple[str, ...]] = {"token_logprobs": (), "token_logprobs_entropy": ("entropy",)}
CHUNK = 32768
"""of the vocabulary: what its trainers ask for"""


@dataclass
class TRL:
    """The loss is ``trl.GRPOTrainer._compute_loss`` from the per-token log-probs on, loss_type="bnpo": a token mean."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "peer"
    ops: ClassVar[tuple[str, ...]] = ("grpo_loss", *OUTPUTS)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Whether it is there, and has the head."""
        if not find_spec("trl"):
            return "not installed"
        if op in OUTPUTS and not find_spec("trl.kernels"):
            return "this version makes the logits whole: see eager"
        return "takes float32 and narrower" if op in OUTPUTS and dtype == torch.float64 else None

    def prepare(self, op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
        """The head, or the loss."""
        return _head(op, case) if op in OUTPUTS else self._loss(case)

    def _loss(self, case: Case) -> Callable[[], dict[str, Tensor]]:
        """Stand-ins and inputs."""
        from trl import GRPOTrainer  # seconds to import

        x = case.padded
        trainer = _trainer(case)
        no_tokens = torch.empty(len(x["lengths"]), 0, dtype=torch.int64, device=x["lengths"].device)
        inputs = {
            "prompt_ids": no_tokens,
            "prompt_mask": no_tokens,
            "completion_ids": no_tokens,  # only the model reads them
            "completion_mask": x["mask"].long(),
            "advantages": widened(x["group_advantages"]),
            "old_per_token_logps": widened(x["old_logprobs"]),
            "ref_per_token_logps": widened(x["ref_logprobs"]),
        }
        entropies = torch.zeros(x["mask"].shape, device=x["mask"].device)

        def logps(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
            return widened(x["logprobs"]), entropies, None

        trainer._get_per_token_logps_and_entropies = logps
        return lambda: {"loss": GRPOTrainer._compute_loss(trainer, None, inputs)}


def _head(op: str, case: Case) -> Callable[[], dict[str, Tensor]]:
    from trl.kernels import ChunkedLogProbFunction

    x, wanted = case.packed, OUTPUTS[op]

    def run() -> dict[str, Tensor]:
        out, entropy, *_ = ChunkedLogProbFunction.apply(
            x["hidden"], x["weight"], None, x["targets"], 1.0, CHUNK, None, 1.0, wanted
        )
        return {"out": out} if entropy is None else {"out": out, "entropy": entropy}

    return run


def _trainer(case: Case) -> SimpleNamespace:
    """What the method reads of ``self``."""
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda tensor: tensor,
        gather_for_metrics=lambda tensor: tensor,
        reduce=lambda tensor, reduction: tensor,
    )
    return SimpleNamespace(
        accelerator=accelerator,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=False),
        loss_type="bnpo",
        importance_sampling_level="token",
        beta=case.number("kl_coef"),
        epsilon_low=case.number("clip_low"),
        epsilon_high=case.number("clip_high"),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        current_gradient_accumulation_steps=1,
    )
