"""Inputs of the policy losses: near where training is, and away from where a last bit decides.

N packed tokens. A token whose ratio or value lies within rounding of a clip has one gradient in float32 and another in
float64, which would say nothing of an implementation; such tokens are moved off the edge.
"""

import torch
from torch import Tensor

EDGE = 1e-4


def log_probs(
    tokens: int, dtype: torch.dtype, generator: torch.Generator, clips: tuple[float, float]
) -> dict[str, Tensor]:
    """``old_logprobs``, and ``logprobs`` whose ratio to them is clipped at about one token in twenty."""
    old = (-torch.rand(tokens, generator=generator) * 4).to(dtype)
    new = (old.float() + torch.randn(tokens, generator=generator) * 0.1).to(dtype)
    ratio = (new.double() - old.double()).exp()
    near = torch.zeros_like(ratio, dtype=torch.bool)
    for edge in (1 - clips[0], 1 + clips[1]):
        near |= (ratio - edge).abs() < EDGE
    return {"logprobs": torch.where(near, old, new), "old_logprobs": old}


def advantages(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """``[count]`` of both signs, none within rounding of their mean, where a whitened one would change its sign."""
    found = (torch.randn(count, generator=generator) * 1.5 + 0.3).to(dtype)
    near = (found.double() - found.double().mean()).abs() < EDGE
    return torch.where(near, torch.tensor(1.0, dtype=dtype), found)


def values(tokens: int, dtype: torch.dtype, generator: torch.Generator, clip: float) -> dict[str, Tensor]:
    """``old_values``, ``values`` of which some moved further than ``clip``, and ``returns``."""
    old = torch.randn(tokens, generator=generator).to(dtype)
    new = (old.float() + torch.randn(tokens, generator=generator) * 0.12).to(dtype)
    returns = (old.float() + torch.randn(tokens, generator=generator) * 0.5).to(dtype)
    v, o, r = new.double(), old.double(), returns.double()
    bound = v.clamp(o - clip, o + clip)
    near = ((v - o).abs() - clip).abs() < EDGE
    near |= (bound != v) & (((v - r).square() - (bound - r).square()).abs() < EDGE)
    return {"values": torch.where(near, old, new), "old_values": old, "returns": returns}
