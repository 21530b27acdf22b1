"""Advantages within groups (GRPO arXiv:2402.03300, RLOO arXiv:2402.14740), and log-softmax."""

import math
from typing import Any

from .numbers import Row, Rows, mean, population_std


def group_advantages(scores: Row, group: int, kind: str = "grpo") -> dict[str, Any]:
    """0 in a group of one, and where all scores are alike."""
    found: Row = []
    for start in range(0, len(scores), group):
        members = scores[start : start + group]
        for i, score in enumerate(members):
            others = members[:i] + members[i + 1 :]
            std = population_std(members)
            grpo = (score - mean(members)) / std if std else 0.0
            rloo = score - mean(others) if others else 0.0
            found.append({"grpo": grpo, "rloo": rloo}[kind])
    return {"advantages": found}


def logprobs(logits: list[Rows], targets: list[list[int]], temperature: float = 1.0) -> dict[str, Any]:
    """z_target − log Σ e^z, z = logits/temperature, and its gradient summed over tokens; 0 where the target is −100."""
    found, gradient = [], []
    for row, labels in zip(logits, targets, strict=True):
        tokens = [_token(z, label, temperature) for z, label in zip(row, labels, strict=True)]
        found.append([value for value, _ in tokens])
        gradient.append([slope for _, slope in tokens])
    return {"logprobs": found, "gradient of logits": gradient}


def _token(logits: Row, target: int, temperature: float) -> tuple[float, Row]:
    if target == -100:
        return 0.0, [0.0] * len(logits)
    z = [x / temperature for x in logits]
    top = max(z)
    log_total = math.log(math.fsum(math.exp(x - top) for x in z))
    slope = [((v == target) - math.exp(x - top - log_total)) / temperature for v, x in enumerate(z)]
    return (z[target] - top) - log_total, slope
