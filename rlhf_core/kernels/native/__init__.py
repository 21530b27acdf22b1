"""The compiled ops (csrc/): their shapes for tracing, their autograd, and an entry a device in the registry.

One file an op; each adds the ``cpu`` and the ``cuda`` backend, which share a schema.
"""

from . import attention, policy_loss, preference_loss, ranking_loss, shaped_gae  # noqa: F401  (each adds itself)
