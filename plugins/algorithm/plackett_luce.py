"""Ranks from scores: by a judge who is sure, or by one who errs as the Plackett–Luce model has it.

K responses to one prompt.
"""

from collections.abc import Sequence

import torch

from ..data.ranks import ranks_by


def utilities(scores: Sequence[float], temperature: float, generator: torch.Generator) -> list[float]:
    """What a judge perceives of K scores: score + temperature · G with G ~ Gumbel(0, 1), independent.

    Ordered by them, responses are a draw of the Plackett–Luce model: the best is i with probability
    exp(s_i/τ) / Σ_j exp(s_j/τ), the next among the others likewise, so that i beats j with probability
    σ((s_i − s_j)/τ) (Luce 1959; Plackett 1975; that Gumbel noise does it: Yellott 1977).
    """
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    noise = -(-uniform.log()).log()
    return [score + temperature * float(gumbel) for score, gumbel in zip(scores, noise, strict=True)]


def ranks_of(values: Sequence[float], tie: float = 0.0) -> tuple[float, ...]:
    """Ranks of K values, 0 the largest; values within ``tie`` of the largest of a rank share it: 0, 1, 1, 3."""
    return tuple(map(float, ranks_by(values, lambda leader, index: tie)))
