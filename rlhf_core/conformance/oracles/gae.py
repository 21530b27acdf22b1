"""Generalised advantages by the recursion of arXiv:1506.02438, a valid token at a time; and whitening."""

from typing import Any

from .numbers import Mask, Row, Rows, mean, population_std, valid


def gae(
    rewards: Rows,
    values: Rows,
    mask: Mask,
    gamma: float,
    lam: float,
    bootstrap: Row | None = None,
    scores: Row | None = None,
) -> dict[str, Any]:
    """Advantages and returns, None where masked."""
    rows = [
        _row(rewards[b], values[b], mask[b], gamma, lam, bootstrap[b] if bootstrap else 0.0, scores[b] if scores else 0)
        for b in range(len(values))
    ]
    return {"advantages": [row[0] for row in rows], "returns": [row[1] for row in rows]}


def _row(
    rewards: Row, values: Row, mask: list[bool], gamma: float, lam: float, next_value: float, score: float
) -> tuple[list[float | None], list[float | None]]:
    advantages: list[float | None] = [None] * len(values)
    returns: list[float | None] = [None] * len(values)
    advantage = 0.0
    for t in reversed(range(len(values))):
        if not mask[t]:
            continue
        delta = rewards[t] + score + gamma * next_value - values[t]
        advantage = delta + gamma * lam * advantage
        advantages[t], returns[t] = advantage, advantage + values[t]
        next_value, score = values[t], 0.0
    return advantages, returns


def whiten(values: Rows, mask: Mask, shift_mean: bool = True) -> dict[str, Any]:
    """(x − mean)/std of the valid, population std; None where masked. 0 (or the mean) where all are alike."""
    kept = valid(values, mask)
    middle, std = mean(kept), population_std(kept)
    back = 0.0 if shift_mean else middle

    def one(x: float) -> float:
        return (x - middle) / std + back if std else back

    rows = zip(values, mask, strict=True)
    return {"whitened": [[one(x) if keep else None for x, keep in zip(*row, strict=True)] for row in rows]}
