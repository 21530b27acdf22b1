"""What is asked of every rollout."""

from ..check import Checks

CHECKS = check = Checks()
