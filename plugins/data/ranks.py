"""Ranks from numbers of which some are too close to tell apart."""

from collections.abc import Callable, Sequence


def ranks_by(values: Sequence[float], tie: Callable[[int, int], float]) -> list[int]:
    """Ranks of K values, 0 the largest; what is near the largest of a rank shares it: 0, 1, 1, 3.

    ``tie(i, j)`` is by how much the largest of a rank, i, may exceed j to be no better.
    """
    ranks = [0] * len(values)
    order = sorted(range(len(values)), key=lambda index: -values[index])
    leader = order[0]
    for place, index in enumerate(order):
        if values[leader] - values[index] > tie(leader, index):
            leader, ranks[index] = index, place
        else:
            ranks[index] = ranks[leader]
    return ranks
