"""Input validation shared by the ops: one line that names the argument, what came and what was expected.

N packed tokens, B sequences.
"""

from itertools import pairwise

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect(right: bool, name: str, expected: str, came: object) -> None:
    """Raise ``ValueError`` unless ``right``."""
    if not right:
        raise ValueError(f"{name}: expected {expected}, got {came}")


def dense(tensor: Tensor, name: str) -> None:
    """It is a tensor, and not a sparse one."""
    if not isinstance(tensor, Tensor):
        expect(False, name, "a tensor", type(tensor).__name__)
    if tensor.layout is not torch.strided:
        expect(False, name, "a dense tensor", tensor.layout)


def shaped(tensor: Tensor | None, name: str, shape: tuple[int, ...], like: Tensor | None = None) -> None:
    """A given tensor has this shape (−1 is any) and lies on ``like``'s device."""
    if tensor is None:
        return
    dense(tensor, name)
    if tensor.shape != shape:  # the messages are made only where something may be wrong: an op takes microseconds
        same = all(want in (-1, size) for want, size in zip(shape, tensor.shape, strict=False))
        expect(tensor.dim() == len(shape) and same, name, f"shape {list(shape)}", list(tensor.shape))
    if like is not None and tensor.device != like.device:
        expect(False, name, f"a tensor on {like.device}", tensor.device)


def floating(tensor: Tensor | None, name: str, shape: tuple[int, ...], like: Tensor | None = None) -> None:
    """A given tensor is of a floating dtype, has this shape and lies on ``like``'s device."""
    if tensor is not None:
        dense(tensor, name)
        expect(tensor.dtype in FLOATS, name, "a floating dtype", tensor.dtype)
        shaped(tensor, name, shape, like)


def boolean(tensor: Tensor | None, name: str, shape: tuple[int, ...], like: Tensor | None = None) -> None:
    """A given mask is bool, has this shape and lies on ``like``'s device."""
    if tensor is not None:
        dense(tensor, name)
        expect(tensor.dtype == torch.bool, name, "bool", tensor.dtype)
        shaped(tensor, name, shape, like)


def offsets(cu_seqlens: Tensor, name: str = "cu_seqlens", like: Tensor | None = None) -> int:
    """``cu_seqlens`` is ``[B+1]`` int32; gives B. Values are checked by whoever reads them (``host_offsets``, C++)."""
    shaped(cu_seqlens, name, (-1,), like)
    expect(cu_seqlens.dtype == torch.int32, name, "int32", cu_seqlens.dtype)
    expect(len(cu_seqlens) >= 1, name, "shape [B+1]", list(cu_seqlens.shape))
    return len(cu_seqlens) - 1


def host_offsets(cu_seqlens: Tensor, tokens: int, *, tail: bool = False) -> list[int]:
    """The offsets as numbers, their values checked; one synchronisation on an accelerator.

    Args:
        cu_seqlens: ``[B+1]`` int32.
        tokens: N.
        tail: rows after the last sequence are allowed.
    """
    found: list[int] = cu_seqlens.tolist()
    expect(found[0] == 0, "cu_seqlens", "to begin with 0", found[0])
    fits = found[-1] <= tokens if tail else found[-1] == tokens
    expect(fits, "cu_seqlens", f"to end with the {tokens} tokens", found[-1])
    falls = [(left, right) for left, right in pairwise(found) if right < left]
    expect(not falls, "cu_seqlens", "non-decreasing offsets", falls[:1])
    return found


def number(value: "float | Tensor | None", name: str, *, positive: bool = False) -> None:
    """A given number is one number; a tensor's value is not looked at, which on an accelerator would synchronise."""
    if isinstance(value, Tensor):
        expect(value.numel() == 1, name, "one number", f"shape {list(value.shape)}")
    elif value is not None:
        expect(isinstance(value, int | float), name, "a number", type(value).__name__)
        expect(not positive or value > 0, name, "a number > 0", value)


def one_of(value: str, name: str, choices: tuple[str, ...]) -> None:
    """A choice among words."""
    expect(value in choices, name, f"one of {', '.join(choices)}", repr(value))


def statistics_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What losses, log-probs and statistics of these inputs are computed in: float32, or float64 where one is."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32
