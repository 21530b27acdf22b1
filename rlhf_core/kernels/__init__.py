"""The ops of RLHF on packed tensors: one definition each in plain PyTorch, faster backends where there are any.

One file an op: formula, shapes, units, errors, paper, and the eager definition that every backend is tested against.
``backend=None`` takes what ``set_backend`` chose ("auto": the fastest that can).
"""

from . import native, triton  # noqa: F401  (they add their implementations to the registry)
from .attention import attention
from .decode_attention import decode_attention
from .dispatch import BackendError, Row, Used, set_backend, status, used
from .extension import build_info
from .gae import GAE, shaped_gae
from .grpo_loss import grpo_loss
from .kl import kl_estimate
from .linear_policy_loss import linear_policy_loss
from .logprobs import logprobs_from_logits, token_logprobs
from .policy_loss import whitened
from .ppo_loss import ppo_loss
from .preference_loss import preference_loss
from .ranking_loss import ranking_loss

__all__ = [
    "GAE",
    "BackendError",
    "Row",
    "Used",
    "attention",
    "build_info",
    "decode_attention",
    "grpo_loss",
    "kl_estimate",
    "linear_policy_loss",
    "logprobs_from_logits",
    "ppo_loss",
    "preference_loss",
    "ranking_loss",
    "set_backend",
    "shaped_gae",
    "status",
    "token_logprobs",
    "used",
    "whitened",
]
