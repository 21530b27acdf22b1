"""``token_logprobs_entropy``: the op ``token_logprobs`` with ``entropy=True``.

As there, and an output ``entropy`` ``[N]``. It has no gradient here: frameworks log it, and train on it only where an
entropy bonus is asked for, which is off by default in TRL, and here.
"""

from typing import ClassVar

from torch import Tensor

from ... import kernels
from ..case import Case
from .token_logprobs import TokenLogprobs


class TokenLogprobsEntropy(TokenLogprobs):
    """With the entropy, for the log."""

    name = "token_logprobs_entropy"
    kernel = "token_logprobs"
    required: ClassVar[tuple[str, ...]] = ("out", "entropy")

    def outputs(self, case: Case, backend: str) -> dict[str, Tensor]:
        """Ours."""
        x = case.packed
        out, entropy = kernels.token_logprobs(x["hidden"], x["weight"], x["targets"], entropy=True, backend=backend)
        return {"out": out, "entropy": entropy}


OPERATION = TokenLogprobsEntropy()
