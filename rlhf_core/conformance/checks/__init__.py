"""The checks: one file a function, each a tuple of golden vectors with what an oracle makes of them."""

from ..check import Check
from . import (
    gae,
    group_advantages,
    kl,
    logprobs,
    policy_loss,
    preference_loss,
    ranking_loss,
    ratios,
    value_loss,
    whiten,
)

MODULES = (
    gae, whiten, kl, policy_loss, ratios, value_loss, ranking_loss, preference_loss, group_advantages, logprobs,
)  # fmt: skip
CHECKS: tuple[Check, ...] = tuple(check for module in MODULES for check in module.CHECKS)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(check.group for check in CHECKS))
