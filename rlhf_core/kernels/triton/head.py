# mypy: allow-untyped-calls
"""A linear head by chunks of rows: float32 logits, which never exist whole, and from them the gradients.

N packed tokens, H hidden size, V vocabulary, R rows of a chunk, Δ = d_logits [R,V] (``logprobs.py``).

    logits = hidden·weightᵀ    d_hidden = Δ·weight    d_weight += Δᵀ·hidden    d_bias += Σ_rows Δ

The products are torch's. Logits stay in float32, as the product accumulated them, and Δ takes their place; where the
weights are 16 bits wide, so is Δ, or the products would not run on tensor cores. d_weight adds up in float32.

Nothing waits for the device: rows without a target, or without a gradient, take part in the products as zeros, for
leaving them out would need their number on the host.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import logprobs as row_pass
from .launch import Number, constant, dense

CHUNK = 2048
"""Rows at least: with fewer, reading the weights takes longer than multiplying them."""
ALIGNED = 16  # elements: rows of every vocabulary then begin where 16-byte loads and tensor cores want them


class Gradients(NamedTuple):
    """Those that were asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Head:
    """A head and its labels; the gradients asked for, as they add up."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float,
        wanted: tuple[bool, bool, bool] = (False, False, False), unit: Number | None = None,
    ) -> None:  # fmt: skip
        """Make room for a chunk and for the gradients.

        Args:
            hidden: ``[N,H]``.
            weight: ``[V,H]``.
            bias: ``[V]``.
            targets: ``[N]``, −100 for none.
            temperature: divides the logits.
            wanted: whether the gradients of hidden, weight and bias are.
            unit: what Δ is a multiple of in float16, where 1e-4/N would be 0; the gradients are float32 then.
        """
        self.hidden, self.weight, self.targets = hidden.detach(), weight.detach(), targets.contiguous()
        self.bias = dense(constant(bias))
        self.temperature, self.unit = temperature, unit if hidden.dtype == torch.float16 else None
        self._logits = self._matrix(torch.float32)
        narrow = any(wanted) and hidden.dtype != torch.float32
        self._slopes = self._matrix(hidden.dtype) if narrow else self._logits
        self.dtype = hidden.dtype if self.unit is None else torch.float32
        self._d_hidden = hidden.new_empty(hidden.shape, dtype=self.dtype) if wanted[0] else None
        self._d_weight = weight.new_zeros(weight.shape, dtype=torch.float32) if wanted[1] else None
        self._d_bias = weight.new_zeros(len(weight), dtype=torch.float32) if wanted[2] else None

    def chunks(self) -> Iterator[slice]:
        """Rows of about equal number, CHUNK or more where there are as many."""
        tokens = len(self.hidden)
        rows = -(-tokens // max(1, tokens // CHUNK))
        for start in range(0, tokens, max(1, rows)):
            yield slice(start, min(start + rows, tokens))

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        width = -(-len(self.weight) // ALIGNED) * ALIGNED
        most = next((rows.stop for rows in self.chunks()), 0)  # the first chunk is the largest
        return self.weight.new_empty(most, width, dtype=dtype)[:, : len(self.weight)]

    def logits(self, rows: slice) -> Tensor:
        """``[R,V]`` float32, without the bias; they last until the next chunk's."""
        return _product(self.hidden[rows], self.weight.t(), self._logits[: rows.stop - rows.start])

    def read(
        self, rows: slice, logits: Tensor, logprobs: Tensor, top: Tensor, log_sum: Tensor, entropy: Tensor | None
    ) -> None:
        """Fill these rows of the outputs ``[N]``."""
        outputs = (logprobs[rows], top[rows], log_sum[rows], None if entropy is None else entropy[rows])
        row_pass.rows(logits, self.bias, self.targets[rows], self.temperature, *outputs)

    def differentiate(
        self, rows: slice, logits: Tensor, top: Tensor, log_sum: Tensor, entropy: Tensor | None, d_logprobs: Tensor,
        d_entropy: Tensor | None,
    ) -> None:  # fmt: skip
        """Add what these rows bring, ``d_logprobs`` and ``d_entropy`` ``[R]``; the logits are lost."""
        slopes, targets = self._slopes[: len(logits)], self.targets[rows]
        if self.unit is not None:
            d_logprobs, d_entropy = d_logprobs / self.unit, None if d_entropy is None else d_entropy / self.unit
        found = (top[rows], log_sum[rows], None if d_entropy is None or entropy is None else entropy[rows])
        # A sum over rows cancels, so it is taken before the rounding.
        exact = slopes if self._d_bias is None else logits
        row_pass.slopes(logits, self.bias, targets, self.temperature, *found, d_logprobs, d_entropy, exact)
        if self._d_bias is not None:
            self._d_bias += exact.sum(0)
            if slopes.dtype != exact.dtype:
                slopes.copy_(exact)
        if self._d_hidden is not None:
            _product(slopes, self.weight, self._d_hidden[rows])
        if self._d_weight is not None:
            # A row without a target may hold NaN, and 0·NaN is NaN.
            hidden = torch.where((targets >= 0)[:, None], self.hidden[rows], 0.0)
            _add_product(self._d_weight, slopes.t(), hidden)

    def gradients(self) -> Gradients:
        """All of them, whole."""
        found = Gradients(self._d_hidden, self._d_weight, self._d_bias)
        if self.unit is not None:
            return Gradients(*(None if x is None else x.mul_(self.unit) for x in found))
        return found._replace(weight=None if found.weight is None else found.weight.to(self.dtype))


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a·b, accumulated in float32 and rounded to ``out``'s dtype once."""
    if a.dtype == out.dtype == torch.float32 or (a.is_cuda and a.dtype == out.dtype):
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(a.float() @ b.float())  # a CPU has no such product


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a·b to a float32 total, as the product's own last step: a pass over [V,H] less."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
