"""What is asked of every evaluator."""

from ..check import Checks

CHECKS = check = Checks()
