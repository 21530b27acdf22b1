"""What is asked of every benchmark."""

from ..check import Checks

CHECKS = check = Checks()
