"""The compiled ops (csrc/): their shapes for tracing, their autograd, and an entry a device in the registry.

One file an op; each adds the ``cpu`` and, where there is one, the ``cuda`` backend, which share a schema.
"""

from . import (  # noqa: F401  (each adds itself)
    attention,
    decode_attention,
    linear_policy_loss,
    logprobs,
    policy_loss,
    preference_loss,
    ranking_loss,
    shaped_gae,
)
