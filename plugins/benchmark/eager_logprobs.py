"""Log-probs of tokens as frameworks make them: the logits whole, then a loop over sequences.

N tokens in sequences of T, H hidden size, V vocabulary.

Source: trl/trainer/utils.py of TRL 1.16, selective_log_softmax and entropy_from_logits; verl's
logprobs_from_logits_v2 and OpenRLHF's log_probs_from_logits are the same loop. The logits are float32 there: OpenRLHF
converts them, and mixed precision, TRL's default, does (accelerate's convert_outputs_to_fp32). The product itself runs
in the dtype of the weights. On a GPU TRL 1.16 has a Triton kernel in the place of these functions, and its trainers of
GRPO, DPO and KTO no longer make the logits whole: that is the implementation ``trl``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case, widened

from .eager_gae import masked_mean

Run = Callable[[], dict[str, Tensor]]

TOKENS = 256
"""T: TRL's default max_completion_length"""
CHUNK = 128
"""rows that TRL makes an entropy of at a time"""


def token_logprobs(case: Case) -> Run:
    """The head and the log-probs."""
    x = case.packed

    def run() -> dict[str, Tensor]:
        logits = widened(F.linear(x["hidden"], x["weight"]))
        return {"out": selective_log_softmax(logits, x["targets"])}

    return run


def token_logprobs_entropy(case: Case) -> Run:
    """And the entropy."""
    x = case.packed

    def run() -> dict[str, Tensor]:
        logits = widened(F.linear(x["hidden"], x["weight"]))
        return {"out": selective_log_softmax(logits, x["targets"]), "entropy": entropy_from_logits(logits)}

    return run


def logprobs_from_logits(case: Case) -> Run:
    """The log-probs and the entropy alone."""
    x = case.packed

    def run() -> dict[str, Tensor]:
        logits = widened(x["logits"])
        return {"out": selective_log_softmax(logits, x["targets"]), "entropy": entropy_from_logits(logits)}

    return run


def linear_policy_loss(case: Case) -> Run:
    """The head, the log-probs, the entropy and PPO's loss without a value: as TRL's PPOTrainer had it.

    On all tokens, those of prompts too, whose loss is masked: verl and OpenRLHF run whole sequences through the head.
    """
    x, clip = case.packed, case.number("clip")
    mask = x["mask"]

    def run() -> dict[str, Tensor]:
        logits = widened(F.linear(x["hidden"], x["weight"]))
        logprobs, entropy = selective_log_softmax(logits, x["targets"]), entropy_from_logits(logits)
        difference = logprobs - x["old_logprobs"]
        ratio = torch.exp(difference)
        free = -x["advantages"] * ratio
        clipped = -x["advantages"] * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
        loss = masked_mean(torch.max(free, clipped), mask)
        with torch.no_grad():
            clip_frac = masked_mean((clipped > free).to(ratio.dtype), mask)
            approx_kl = 0.5 * masked_mean(difference**2, mask)
        return {
            "loss": loss, "policy_loss": loss.detach(), "entropy": masked_mean(entropy, mask), "clip_frac": clip_frac,
            "ratio_mean": masked_mean(ratio.detach(), mask), "_approx_kl": approx_kl,
        }  # fmt: skip

    return run


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """``[N]`` log-probs of ``index`` under float32 logits; a sequence at a time, "to reduce peak mem consumption"."""
    selected = torch.gather(logits, dim=-1, index=index.unsqueeze(-1)).squeeze(-1)
    normalisers = torch.cat([torch.logsumexp(rows, dim=-1) for rows in logits.split(TOKENS)])
    return selected - normalisers


@torch.no_grad()
def entropy_from_logits(logits: Tensor) -> Tensor:
    """``[N]`` entropies, for the log: without a gradient, as TRL computes them there."""
    entropies = []
    for chunk in logits.split(CHUNK, dim=0):
        logps = F.log_softmax(chunk, dim=-1)
        entropies.append(-(torch.exp(logps) * logps).sum(-1))
    return torch.cat(entropies, dim=0)
