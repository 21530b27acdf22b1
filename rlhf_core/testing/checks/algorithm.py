"""What is asked of every algorithm: of its shape, gradients, samples and runs, of what it learns and what it saves."""

from ..check import Checks
from .algorithm_gradient import CHECKS as GRADIENT
from .algorithm_learning import CHECKS as LEARNING
from .algorithm_run import CHECKS as RUN
from .algorithm_sampling import CHECKS as SAMPLING
from .algorithm_saving import CHECKS as SAVING
from .algorithm_shape import CHECKS as SHAPE

CHECKS = Checks([*SHAPE, *GRADIENT, *SAMPLING, *LEARNING, *RUN, *SAVING])
