"""What is asked of every tracker."""

from ..check import Checks

CHECKS = check = Checks()
