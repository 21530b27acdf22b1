"""What is asked of every policy."""

from ..check import Checks

CHECKS = check = Checks()
