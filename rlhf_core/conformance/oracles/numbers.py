"""Scalar functions that neither overflow nor cancel, and rows of masked numbers."""

import math
from collections.abc import Iterable, Sequence

Row = list[float]
Rows = list[Row]
Mask = list[list[bool]]


def sigmoid(x: float) -> float:
    """1/(1+e^−x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x: float) -> float:
    """Its logarithm."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def clamp(x: float, low: float, high: float) -> float:
    """X between two bounds."""
    return min(max(x, low), high)


def mean(numbers: Iterable[float]) -> float:
    """Correctly rounded; 0 of nothing."""
    found = list(numbers)
    return math.fsum(found) / len(found) if found else 0.0


def population_std(numbers: Sequence[float]) -> float:
    """Two passes, ÷ n."""
    middle = mean(numbers)
    return math.sqrt(mean((x - middle) ** 2 for x in numbers))


def valid(rows: Rows, mask: Mask) -> Row:
    """What the mask keeps, in order."""
    return [x for row, kept in zip(rows, mask, strict=True) for x, keep in zip(row, kept, strict=True) if keep]
