"""What is asked of every reward."""

from ..check import Checks

CHECKS = check = Checks()
