"""The losses on pairs in plain PyTorch: all pairs at once, gradients by hand.

P prompts of up to K responses, C = K·(K−1)/2 pairs of places; or B pairs.

    ranking     with s [P, K] in the order of the ranks and D [K, C] of +1 and −1: gap = s·D, ∂loss/∂s = −(w·σ(−gap))·Dᵀ
    preference  ∂loss/∂chosen = −β·σ(−h)/B = −∂loss/∂rejected

Two small products in place of gathering pairs and adding up their gradients, which is as fast; [P, K, K] with a mask
takes three times as long. As in ``eager_losses.py``, what follows from the ranks alone is the data's work: untimed.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case, widened

from .known_gradient import with_gradients

Function = Callable[..., dict[str, Tensor]]
Run = Callable[[], dict[str, Tensor]]


def prepare_ranking(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``ranking_loss`` on a case; ``transform`` may compile it."""
    function, x, scores = transform(ranking_loss), case.padded, case.packed["scores"]
    there = torch.arange(x["ranks"].shape[1], device=scores.device) < x["lengths"][:, None]
    place = torch.where(there, x["ranks"], x["ranks"].max() + 1).argsort(1)
    order = (case.packed["cu_seqlens"][:-1, None] + place).where(there, 0)
    better, worse = torch.triu_indices(*2 * there.shape[1:], offset=1, device=scores.device)
    columns = torch.arange(len(better), device=scores.device)
    differences = torch.zeros(there.shape[1], len(better), dtype=widened(scores).dtype, device=scores.device)
    differences[better, columns], differences[worse, columns] = 1, -1
    pairs = (worse < x["lengths"][:, None]).to(differences.dtype)
    count = pairs.sum(1, keepdim=True)
    weight = pairs / count.clamp(min=1) / (count > 0).sum()
    return lambda: function(scores, order, differences, weight)


def prepare_preference(case: Case, transform: Callable[[Function], Function]) -> Run:
    """``preference_loss`` on a case; ``transform`` may compile it."""
    function, beta = transform(preference_loss), case.number("beta")
    tensors = [case.packed[name] for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")]
    return lambda: function(*tensors, beta)


def ranking_loss(scores: Tensor, order: Tensor, differences: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Loss and accuracy; the gradient reaches the ``[N]`` scores.

    Args:
        scores: packed.
        order: ``[P, K]`` where each prompt's responses are, the best first.
        differences: D.
        weight: ``[P, C]``, 0 for pairs that a prompt lacks.
    """
    with torch.no_grad():
        gap = widened(scores)[order] @ differences
        loss = F.softplus(-gap).mul_(weight).sum(1).sum()  # in two steps: inductor adds up in a row
        accuracy = ((gap > 0) * weight).sum(1).sum()
        pull = torch.sigmoid(-gap).mul_(weight).neg_() @ differences.T
        gradient = pull.new_zeros(len(scores))
        gradient.index_add_(0, order.flatten(), pull.flatten())
    return {"loss": with_gradients(loss, {scores: gradient.to(scores.dtype)}), "accuracy": accuracy}


def preference_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> dict[str, Tensor]:
    """DPO and the means that are logged; gradients reach ``chosen`` and ``rejected``."""
    with torch.no_grad():
        won = (widened(chosen) - widened(ref_chosen)).mul_(beta)
        lost = (widened(rejected) - widened(ref_rejected)).mul_(beta)
        margin = won - lost
        loss = F.softplus(-margin).mean()
        gradient = torch.sigmoid(-margin).mul_(-beta / max(len(margin), 1))
        metrics = {
            "chosen_reward": won.mean(),
            "rejected_reward": lost.mean(),
            "reward_margin": margin.mean(),
            "accuracy": (margin > 0).to(margin.dtype).mean(),
        }
        by_input = {chosen: gradient.to(chosen.dtype), rejected: -gradient.to(chosen.dtype)}
    return {"loss": with_gradients(loss, by_input)} | metrics
