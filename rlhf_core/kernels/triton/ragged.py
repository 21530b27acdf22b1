# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""Where a sequence lies among N packed tokens."""

import triton
import triton.language as tl


@triton.jit
def bounds(cu_seqlens, sequence, N):
    """Its first token and the one after its last.

    What the offsets hold cannot be checked without synchronising, so it is made harmless: nothing outside N is touched.
    """
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence).to(tl.int64), 0), N)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1).to(tl.int64), begin), N)
    return begin, end
