# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""Gradients times the gradient from above, which is nearly always 1: ``loss.backward()``.

Whether it is can only be seen on the device. A kernel that looks there and then does nothing costs a launch, where a
multiplication would read and write all gradients again: half as much as the loss itself.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

BLOCK = 4096


@triton.jit
def scale_kernel(x, y, z, upstream, N, BLOCK: tl.constexpr):
    """Multiply what is given of x, y, z ``[N]`` in place."""
    factor = tl.load(upstream)
    if factor != 1:
        slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        _scale(x, slot, N, factor)
        if y is not None:
            _scale(y, slot, N, factor)
        if z is not None:
            _scale(z, slot, N, factor)


@triton.jit
def _scale(x, slot, N, factor):
    tl.store(x + slot, factor * tl.load(x + slot, mask=slot < N, other=0.0), mask=slot < N)


def scale_(gradients: Sequence[Tensor], upstream: Tensor) -> None:
    """Multiply at most three float32 tensors ``[N]`` in place by a scalar."""
    if gradients:
        given, size = [*gradients, None, None][:3], len(gradients[0])
        launch(scale_kernel, triton.cdiv(size, BLOCK), upstream, *given, upstream, size, BLOCK=BLOCK, num_warps=8)
