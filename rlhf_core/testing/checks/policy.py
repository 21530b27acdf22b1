"""What is asked of every policy."""

from ..check import Check
from . import policy_logprobs, policy_saving, policy_scores, policy_text, policy_training

CHECKS: list[Check] = [
    *policy_text.CHECKS,
    *policy_logprobs.CHECKS,
    *policy_training.CHECKS,
    *policy_saving.CHECKS,
    *policy_scores.CHECKS,
]
