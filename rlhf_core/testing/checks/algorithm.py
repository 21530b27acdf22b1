"""What is asked of every algorithm."""

from ..check import Checks

CHECKS = check = Checks()
