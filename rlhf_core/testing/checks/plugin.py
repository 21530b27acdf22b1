"""What is asked of every plugin."""

from ..check import Checks

CHECKS = check = Checks()
