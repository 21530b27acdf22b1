"""The ops of rlhf_core.kernels computed by the CUDA sources on the host: what csrc/cuda/*_op.cpp does, in Python."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.kernels.gae import GAE
from rlhf_core.kernels.kl import ESTIMATORS
from rlhf_core.kernels.policy_loss import METRICS, Terms
from rlhf_core.kernels.preference_loss import KINDS
from rlhf_core.kernels.preference_loss import METRICS as PREFERENCE_METRICS

from .host import Host, guarded

INFINITY = float("inf")
NAN = float("nan")


def number(value: "float | Tensor | None", *, device: bool) -> dict[str, Any]:
    """A scalar argument, as if it lay on the host or on the device."""
    if value is None:
        return {"given": False}
    held = torch.as_tensor(value, dtype=torch.float32)
    return {"given": True, "device": held} if device else {"given": True, "value": held.item()}


class ScalarLoss(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor, ...], *learnt: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * upstream for gradient in ctx.saved_tensors)


def run_shaped_gae(
    host: Host, scores: Tensor, values: Tensor, cu_seqlens: Tensor, mask: Tensor | None, rewards: Tensor | None,
    logprobs: Tensor | None, ref_logprobs: Tensor | None, bootstrap: Tensor | None, gamma: float, lam: float,
    kl_coef: float, kl_estimator: str, score_clip: float | None,
) -> GAE:  # fmt: skip
    per_token = {"values": values, "rewards": rewards, "logprobs": logprobs, "ref_logprobs": ref_logprobs}
    found = {name: host.out(len(values)) for name in ("advantages", "returns", "kl")}
    found |= {"count": torch.tensor(-1), "mean": host.out(), "var": host.out()}
    host.run(
        "shaped_gae", "ShapedGae", tokens=len(values), sequences=len(scores), cu_seqlens=cu_seqlens,
        scores=host.given(scores), mask=host.given(mask), bootstrap=host.given(bootstrap),
        **{name: host.given(tensor, mask) for name, tensor in per_token.items()},
        gamma=gamma, gamma_lam=gamma * lam, kl_coef=kl_coef, score_clip=INFINITY if score_clip is None else score_clip,
        estimator=ESTIMATORS.index(kl_estimator), **found,
    )  # fmt: skip
    return GAE(**found)


def run_policy_loss(host: Host, x: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    names = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "entropy")
    tensors = {name: getattr(x, name) for name in (*names, "ref_logprobs", "importance")}
    clips = x.old_values is not None and x.value_clip is not None
    tensors["old_values"] = x.old_values if clips else None
    learnt = {n: getattr(x, n) for n in ("logprobs", "values", "entropy") if getattr(x, n) is not None}
    gradients = {f"grad_{name}": host.out(len(tensor)) for name, tensor in learnt.items()}
    loss, metrics = host.out(), host.out(len(METRICS))
    device = bool(host.shift)  # numbers lie on either side in turn
    host.run(
        "policy_loss", "PolicyLoss", tokens=len(x.logprobs), cu_seqlens=x.cu_seqlens, mask=host.given(x.mask),
        sequences=0 if x.cu_seqlens is None else len(x.cu_seqlens) - 1,
        **{name: host.given(tensor, x.mask) for name, tensor in tensors.items()},
        mean=number(x.mean, device=device), var=number(x.var, device=device),
        denominator=number(x.denominator, device=device), shift_mean=x.shift_mean,
        level=("token", "sequence").index(x.level), aggregate=("token", "sequence", "constant").index(x.aggregate),
        options={
            "low": 1 - x.clip_low, "high": 1 + x.clip_high, "dual_clip": x.dual_clip or INFINITY,
            "value_clip": x.value_clip if clips else INFINITY, "scale": 1, "value_coef": x.value_coef,
            "entropy_coef": x.entropy_coef, "kl_coef": x.kl_coef,
            "estimator": ESTIMATORS.index(x.kl_estimator), "cispo": x.objective == "cispo",
        },
        loss=loss, metrics=metrics, **gradients,
    )  # fmt: skip
    return ScalarLoss.apply(loss, tuple(gradients.values()), *learnt.values()), dict(zip(METRICS, metrics, strict=True))


def run_ranking_loss(
    host: Host, scores: Tensor, cu_seqlens: Tensor, ranks: Tensor, margin: "float | Tensor | None", center_coef: float,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    loss, accuracy, gradient = host.out(), host.out(), host.out(len(scores))
    host.run(
        "ranking_loss", "RankingLoss", responses=len(scores), prompts=len(cu_seqlens) - 1, cu_seqlens=cu_seqlens,
        scores=host.given(scores), ranks=host.given(ranks.double()),
        rating=host.given(margin) if isinstance(margin, Tensor) else None,
        margin=0.0 if margin is None or isinstance(margin, Tensor) else margin, center_coef=center_coef,
        denominator=number(denominator, device=bool(host.shift)), loss=loss, accuracy=accuracy, grad_scores=gradient,
    )  # fmt: skip
    return ScalarLoss.apply(loss, (gradient,), scores), accuracy


def run_preference_loss(
    host: Host, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | None, ref_rejected: Tensor | None, beta: float,
    kind: str, label_smoothing: float, margin: float, chosen_lengths: Tensor | None, rejected_lengths: Tensor | None,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    loss, metrics = host.out(), host.out(len(PREFERENCE_METRICS))
    gradients = {f"grad_{name}": host.out(len(chosen)) for name in ("chosen", "rejected")}
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    inputs = {"chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    inputs |= {name: None if tensor is None else tensor.float() for name, tensor in lengths.items()}
    host.run(
        "preference_loss", "PreferenceLoss", pairs=len(chosen),
        **{name: host.given(tensor) for name, tensor in inputs.items()},
        denominator=number(denominator, device=bool(host.shift)),
        options={
            "kind": KINDS.index(kind), "beta": beta, "smoothing": label_smoothing, "margin": margin,
            "epsilon": torch.finfo(torch.float32).eps,
        },
        loss=loss, metrics=metrics, **gradients,
    )  # fmt: skip
    return ScalarLoss.apply(loss, tuple(gradients.values()), chosen, rejected), dict(
        zip(PREFERENCE_METRICS, metrics, strict=True)
    )


def run_decode_attention(
    host: Host, q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, prefix_k: Tensor | None,
    prefix_v: Tensor | None, prefix_of: Tensor | None, prefix_lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """Rows are as far apart as tensors are from alignment, with NaN between them."""
    outer = {"q": ("sequence", "head"), "k": ("sequence", "slot", "head"), "prefix_k": ("prompt", "slot", "head")}
    names = {**outer, "v": outer["k"], "prefix_v": outer["prefix_k"]}
    given = {"q": q, "k": k_cache, "v": v_cache, "prefix_k": prefix_k, "prefix_v": prefix_v}
    fields: dict[str, Any] = {}
    for name, tensor in given.items():
        if tensor is not None:
            spread = F.pad(tensor, (0, host.shift), value=NAN)
            fields[name] = host.given(spread.flatten())
            fields |= {f"{name}_{of}": step for of, step in zip(names[name], spread.stride(), strict=False)}
    out = guarded(torch.full((q.numel(),), NAN, dtype=q.dtype), host.shift)
    prompts = (0, 0) if prefix_k is None else prefix_k.shape[:2]
    host.run(
        "decode_attention", "DecodeAttention", sequences=len(q), heads=q.shape[1], key_heads=k_cache.shape[2],
        size=q.shape[2], slots=k_cache.shape[1], prompts=prompts[0], prefix_slots=prompts[1], scale=scale,
        dtype=(torch.float32, torch.bfloat16, torch.float16).index(q.dtype), lengths=host.given(lengths),
        prefix_of=host.given(prefix_of), prefix_lengths=host.given(prefix_lengths), out=out, **fields,
    )  # fmt: skip
    return out.clone().view(q.shape)
