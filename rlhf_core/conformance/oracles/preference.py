"""The reward model's loss (arXiv:2203.02155, K-wise) and the DPO family, with their gradients, pair by pair."""

import math
from itertools import permutations
from typing import Any

from .numbers import Mask, Row, Rows, log_sigmoid, sigmoid, valid


def ranking_loss(scores: Rows, ranks: list[list[int]]) -> dict[str, Any]:
    """Mean over prompts with an untied pair of the mean over their untied pairs."""
    pairs = [
        [(w, b) for w, b in permutations(range(len(rank)), 2) if rank[w] < rank[b]] for rank in ranks
    ]  # better, worse
    prompts = max(1, sum(bool(found) for found in pairs))
    loss, gradient = 0.0, [[0.0] * len(row) for row in scores]
    for row, slope, found in zip(scores, gradient, pairs, strict=True):
        for better, worse in found:
            share, gap = 1 / (len(found) * prompts), row[better] - row[worse]
            loss -= share * log_sigmoid(gap)
            slope[better] -= share * sigmoid(-gap)
            slope[worse] += share * sigmoid(-gap)
    return {"loss": loss, "gradient of scores": gradient}


def preference_loss(
    chosen: Rows,
    rejected: Rows,
    chosen_mask: Mask,
    rejected_mask: Mask,
    beta: float,
    kind: str = "dpo",
    ref_chosen: Rows | None = None,
    ref_rejected: Rows | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
) -> dict[str, Any]:
    """The mean over pairs; gradients are 0 where masked."""
    loss, slopes = 0.0, []
    for b in range(len(chosen)):
        c, chosen_by = _response(chosen[b], ref_chosen[b] if ref_chosen else None, chosen_mask[b], kind)
        r, rejected_by = _response(rejected[b], ref_rejected[b] if ref_rejected else None, rejected_mask[b], kind)
        value, by_c, by_r = _pair(c, r, beta, kind, label_smoothing, margin)
        loss += value / len(chosen)
        slopes.append((by_c * chosen_by / len(chosen), by_r * rejected_by / len(chosen)))
    spread = [
        [[slope[side] * keep for keep in row] for slope, row in zip(slopes, mask, strict=True)]
        for side, mask in enumerate((chosen_mask, rejected_mask))
    ]
    return {"loss": loss, "gradient of chosen": spread[0], "gradient of rejected": spread[1]}


def _response(logprobs: Row, reference: Row | None, mask: list[bool], kind: str) -> tuple[float, float]:
    """Log-ratio of one response, summed or averaged over its tokens, and its derivative by a token's log-prob."""
    total = math.fsum(valid([logprobs], [mask])) - math.fsum(valid([reference], [mask]) if reference else [])
    share = 1 / max(1, sum(mask)) if kind in ("ipo", "orpo", "simpo") else 1.0
    return total * share, share


def _pair(c: float, r: float, beta: float, kind: str, smoothing: float, margin: float) -> tuple[float, float, float]:
    """Loss of a pair of log-ratios, and its derivatives by both."""
    h = beta * (c - r) - margin
    if kind == "hinge":
        slope = -beta if h < 1 else 0.0
        return max(0.0, 1 - h), slope, -slope
    if kind == "ipo":
        off = c - r - 1 / (2 * beta)
        return off**2, 2 * off, -2 * off
    if kind == "orpo":
        gap = _log_odds(c) - _log_odds(r)
        slope = beta * sigmoid(-gap)
        return -c - beta * log_sigmoid(gap), -1 + slope / math.expm1(c), -slope / math.expm1(r)
    loss = -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)
    slope = beta * (smoothing * sigmoid(h) - (1 - smoothing) * sigmoid(-h))
    return loss, slope, -slope


def _log_odds(logprob: float) -> float:
    return logprob - math.log(-math.expm1(logprob))
