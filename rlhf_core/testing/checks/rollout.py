"""What is asked of every rollout engine."""

from ..check import Check
from . import rollout_answers, rollout_draws, rollout_logprobs, rollout_model

CHECKS: list[Check] = [
    *rollout_answers.CHECKS,
    *rollout_logprobs.CHECKS,
    *rollout_draws.CHECKS,
    *rollout_model.CHECKS,
]
