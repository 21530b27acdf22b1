"""GAE without a loop over time, in plain PyTorch, on the padded rectangle.

B sequences, T tokens each, C tokens a block, K = ⌈T/C⌉ blocks; d = γλ.

    A_t = Σ_{s ≥ t} d^{s−t}·δ_s

A scan as two small matrix products: within a block, δ times the C×C triangle of powers of d; across blocks, what each
block begins with times the K×K triangle of powers of d^C, carried into the block before. 2·C flops a token. Of what was
tried on two AVX-512 cores, 64×512 … 256×2048, this is the fastest: 32 … 270 µs, against 150 … 1650 for a log-step scan,
214 … 14000 for one T×T triangle; C = 16 and 32 are alike, 64 and 128 slower.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case

BLOCK = 16

Function = Callable[..., dict[str, Tensor]]
Triangles = tuple[Tensor, Tensor, Tensor]


def prepare(case: Case, transform: Callable[[Function], Function]) -> Callable[[], dict[str, Tensor]]:
    """The scan on a case; ``transform`` may compile it. The triangles depend on γλ and T alone: made beforehand."""
    x, function = case.padded, transform(shaped_gae)
    gamma, lam, kl_coef = (case.number(name) for name in ("gamma", "lam", "kl_coef"))
    names = ("scores", "values", "logprobs", "ref_logprobs", "mask", "lengths")
    tensors = [x[name] for name in names]
    dtype = torch.promote_types(x["values"].dtype, torch.float32)
    made = triangles(gamma * lam, x["values"].shape[1], x["values"].new_empty(0, dtype=dtype))

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            return function(*tensors, made, gamma, kl_coef)

    return run


def shaped_gae(
    scores: Tensor, values: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, lengths: Tensor,
    triangles: Triangles, gamma: float, kl_coef: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Raw advantages, returns and kl ``[B, T]``, and the two statistics that whiten."""
    dtype = triangles[0].dtype
    values, kl = values.to(dtype), logprobs.to(dtype) - ref_logprobs.to(dtype)
    delta = torch.add(values, kl, alpha=kl_coef).neg_()
    delta[:, :-1].add_(values[:, 1:], alpha=gamma)
    delta[torch.arange(len(delta), device=delta.device), lengths - 1] += scores.to(dtype)
    advantages = scan(delta, *triangles)
    count = mask.sum()
    mean = advantages.sum() / count
    var = (advantages - mean).mul_(mask).square_().sum() / count
    return {"advantages": advantages, "returns": advantages + values, "kl": kl, "mean": mean, "var": var}


def scan(delta: Tensor, within: Tensor, across: Tensor, carried: Tensor) -> Tensor:
    """``[B, T]`` discounted sums of ``delta`` from each token to the end; see ``triangles`` for the others."""
    length = delta.shape[1]
    padded = F.pad(delta, (0, -length % len(within))) if length % len(within) else delta
    local = padded.view(len(delta), -1, len(within)) @ within
    first = local[:, :, 0] @ across
    later = F.pad(first[:, 1:], (0, 1))
    found = torch.addcmul(local, later[:, :, None], carried).view(len(delta), -1)
    return found[:, :length]


def triangles(decay: float, length: int, like: Tensor) -> Triangles:
    """Powers of d within a block ``[C, C]``, of d^C across blocks ``[K, K]``, and d^{C−i} for token i ``[C]``."""
    place = torch.arange(BLOCK, device=like.device)
    carried = torch.tensor(decay, dtype=torch.float64, device=like.device) ** (BLOCK - place)
    blocks = -(-length // BLOCK)
    return _triangle(decay, BLOCK, like), _triangle(decay**BLOCK, blocks, like), carried.to(like.dtype)


def _triangle(decay: float, size: int, like: Tensor) -> Tensor:
    """decay^{row − column} on and below the diagonal: for a row vector from the left."""
    place = torch.arange(size, device=like.device)
    exponent = place[:, None] - place[None, :]
    power = torch.tensor(decay, dtype=torch.float64, device=like.device) ** exponent.clamp(min=0)
    return torch.where(exponent >= 0, power, 0.0).to(like.dtype)
