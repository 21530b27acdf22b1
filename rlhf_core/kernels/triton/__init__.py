"""The Triton backend: one module an op, named as its definition is, and a line each in ``MODULES``.

triton is imported only where it can run: on a machine with a CUDA device, or under TRITON_INTERPRET=1, which runs the
kernels in numpy on CPU tensors, for tests. Elsewhere the ops are listed with the reason.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from ..attention import OP as ATTENTION
from ..decode_attention import OP as DECODE_ATTENTION
from ..dispatch import Implementation, Op
from ..gae import OP as SHAPED_GAE
from ..grpo_loss import OP as GRPO_LOSS
from ..linear_policy_loss import OP as LINEAR_POLICY_LOSS
from ..logprobs import FROM_LOGITS, TOKEN_LOGPROBS
from ..ppo_loss import OP as PPO_LOSS
from ..preference_loss import OP as PREFERENCE_LOSS
from ..ranking_loss import OP as RANKING_LOSS

MODULES: dict[str, tuple[Op[..., Any], ...]] = {
    "shaped_gae": (SHAPED_GAE,),
    "policy_loss": (PPO_LOSS, GRPO_LOSS),
    "ranking_loss": (RANKING_LOSS,),
    "preference_loss": (PREFERENCE_LOSS,),
    "attention": (ATTENTION,),
    "decode_attention": (DECODE_ATTENTION,),
    "logprobs": (FROM_LOGITS,),
    "token_logprobs": (TOKEN_LOGPROBS,),
    "linear_policy_loss": (LINEAR_POLICY_LOSS,),
}
"""A module has ``run``, which takes what the eager definition takes, and may have ``refuses`` (``dispatch.py``)."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
UNTRIED = "never run on a GPU: compiled for it, and tested in Triton's interpreter"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not() -> str | None:
    """Why no kernel can run on this machine, or None."""
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if not INTERPRETED and not torch.cuda.is_available():
        return "needs a CUDA device (or TRITON_INTERPRET=1 for tests)"
    return None


def _implementation(module: str, unavailable: str | None) -> Implementation[..., Any]:
    run: Callable[..., Any] = _never
    refuses = None
    if unavailable is None:
        try:
            found = import_module(f"{__name__}.{module}")
            run, refuses = found.run, getattr(found, "refuses", None)
        except (ImportError, OSError, AttributeError) as error:  # another version's triton, or half of one
            unavailable = f"cannot be loaded: {' '.join(str(error).split())}"
    return Implementation(run, DEVICES, DTYPES, refuses, unavailable, note=UNTRIED)


def _never(*_: object) -> None:
    raise AssertionError("the dispatch does not call what is unavailable")


for _module, _ops in MODULES.items():
    _found = _implementation(_module, why_not())
    for _op in _ops:
        _op.add("triton", _found)
