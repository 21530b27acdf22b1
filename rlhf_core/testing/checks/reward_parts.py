"""What is asked of rewards that are made of parts.

B responses.
"""

from typing import Any

from torch import Tensor

from ...contracts.reward import Reward, Samples
from ...run import Run
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import World
from .scores import not_finite, ready, refuse_different, scores_of

CHECKS = check = Checks()


class Totalled:
    """A reward with parts, scored as a run scores it."""

    def __init__(self, reward: Any) -> None:
        """One that is set up."""
        self.reward = reward

    def setup(self, run: Run) -> None:
        """It was."""

    def score(self, samples: Samples) -> Tensor:
        """``[B]``."""
        total: Tensor = self.reward.total(self.reward.score_parts(samples))
        return total


@check(
    "total(score_parts(samples)) equals score(samples)",
    why="runs are trained on total(score_parts(…)), judges use score(…): the two have to mean the same",
    cure="define score(samples) as self.total(self.score_parts(samples))",
)
def totals_its_parts(reward: Reward, world: World) -> None:
    """One of them is not enough, either."""
    if not hasattr(reward, "score_parts"):
        raise NotApplicable("it has no parts")
    if not hasattr(reward, "total"):
        fail("it has score_parts() and no total()", cure="add total(parts), which makes scores of parts")
    ready(reward, world)

    whole, made = scores_of(reward, world.samples), scores_of(Totalled(reward), world.samples)
    refuse_different(reward, whole, made, world.samples, "by score()", "by total(score_parts())")


@check(
    "each part has a name and one finite number a response",
    why="parts are logged by their names, as means over the batch",
    cure="return a dict: name → tensor of shape [B], before weights",
)
def gives_parts_that_can_be_logged(reward: Reward, world: World) -> None:
    """Of a batch, and of one response."""
    if not hasattr(reward, "score_parts"):
        raise NotApplicable("it has no parts")
    ready(reward, world)
    for samples in (world.samples, world.samples.select([0])):
        parts: Any = reward.score_parts(samples)
        fail_if(not hasattr(parts, "items"), f"score_parts() gave {type(parts).__name__}")
        for name, scores in parts.items():
            fail_if(not isinstance(name, str), f"a part is called {name!r}, which is no text")
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            fail_if(shape != [len(samples)], f"part {name} has shape {shape} for {len(samples)} responses")
            wrong = not_finite(scores, samples)
            fail_if(bool(wrong), f"part {name}: {wrong}")
