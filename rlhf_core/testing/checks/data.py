"""What is asked of every data."""

from ..check import Checks

CHECKS = check = Checks()
