"""The policy losses, the critic's and the KL estimators, with their gradients, token by token.

PPO arXiv:1707.06347, dual clip arXiv:1912.09729, GSPO arXiv:2507.18071, CISPO arXiv:2506.13585.
Log-ratios are clamped to ±20.
"""

import math
from typing import Any

from .numbers import Mask, Rows, clamp, mean

LIMIT = 20.0


def policy_loss(
    logprobs: Rows,
    old_logprobs: Rows,
    advantages: Rows,
    mask: Mask,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    level: str = "token",
    kind: str = "clip",
    aggregate: str = "token",
    denominator: float | None = None,
) -> dict[str, Any]:
    """The loss, and its gradient, which is 0 where masked."""
    loss, gradient = 0.0, [[0.0] * len(row) for row in mask]
    share = weights(mask, aggregate, denominator)
    for b, kept in enumerate(mask):
        tokens = [t for t, keep in enumerate(kept) if keep]
        ratios = {t: logprobs[b][t] - old_logprobs[b][t] for t in tokens}
        middle = mean(ratios.values())
        for t in tokens:
            log_ratio = ratios[t] if level == "token" else middle
            value, slope = _objective(log_ratio, advantages[b][t], clip_low, clip_high, dual_clip)
            if kind == "cispo":
                slope = clamp(math.exp(log_ratio), 1 - clip_low, 1 + clip_high) * advantages[b][t]
                value = slope * logprobs[b][t]
            loss -= share[b] * value
            for other in [t] if level == "token" else tokens:
                gradient[b][other] -= share[b] * slope / (1 if level == "token" else len(tokens))
    return {"loss": loss, "gradient of logprobs": gradient}


def _objective(
    log_ratio: float, advantage: float, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[float, float]:
    """Its value, and its derivative by the log-ratio."""
    ratio = math.exp(clamp(log_ratio, -LIMIT, LIMIT))
    free, bound = ratio * advantage, clamp(ratio, 1 - clip_low, 1 + clip_high) * advantage
    value, slope = (free, free if abs(log_ratio) <= LIMIT else 0.0) if free <= bound else (bound, 0.0)
    if dual_clip is not None and advantage < 0 and value < dual_clip * advantage:
        return dual_clip * advantage, 0.0
    return value, slope


def weights(mask: Mask, aggregate: str, denominator: float | None) -> list[float]:
    """What a valid token of each row counts."""
    lengths = [sum(row) for row in mask]
    if aggregate == "sequence":
        rows = denominator or max(1, sum(length > 0 for length in lengths))
        return [1 / (max(1, length) * rows) for length in lengths]
    return [1 / (denominator or max(1, sum(lengths)))] * len(mask)


def value_loss(values: Rows, old_values: Rows, returns: Rows, mask: Mask, clip: float | None) -> dict[str, Any]:
    """½·max(free², bound²), mean over valid tokens, and its gradient."""
    loss, gradient, share = 0.0, [[0.0] * len(row) for row in mask], 1 / max(1, sum(map(sum, mask)))
    for b, kept in enumerate(mask):
        for t in (t for t, keep in enumerate(kept) if keep):
            value, old, target = values[b][t], old_values[b][t], returns[b][t]
            free, bound = value - target, 0.0
            if clip is not None:
                bound = clamp(value, old - clip, old + clip) - target
            moves = abs(value - old) < clip if clip is not None else True
            taken, slope = (free, free) if free**2 >= bound**2 else (bound, bound if moves else 0.0)
            loss += share * taken**2 / 2
            gradient[b][t] = share * slope
    return {"loss": loss, "gradient of values": gradient}


def kl(logprobs: Rows, ref_logprobs: Rows, kind: str) -> dict[str, Any]:
    """Each token's estimate."""
    rows = zip(logprobs, ref_logprobs, strict=True)
    return {"estimates": [[_estimate(p - q, kind) for p, q in zip(*row, strict=True)] for row in rows]}


def _estimate(d: float, kind: str) -> float:
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[kind]


def exact_kl(logprobs: list[float], ref_logprobs: list[float]) -> float:
    """Σ p·(log p − log q) over a whole vocabulary."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(logprobs, ref_logprobs, strict=True))
