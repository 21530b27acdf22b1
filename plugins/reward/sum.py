"""A weighted sum of other rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_core.contracts.reward import Samples, score_with_parts, step_rewards
from rlhf_core.errors import UserError
from rlhf_core.plugins import did_you_mean
from rlhf_core.run import Run


@dataclass(frozen=True)
class Schedule:
    """A factor that goes in a straight line from one value to another while the policy is trained."""

    start: float = 0.0  # until training step `first`
    end: float = 1.0  # from training step `last` on
    first: float = 0
    last: float = 10

    @staticmethod
    def of(name: str, given: Any) -> "Schedule":
        """The schedule of a part, checked here: OmegaConf cannot merge typed dicts of dicts from a file."""
        known = [item.name for item in fields(Schedule)]
        if not isinstance(given, dict):
            raise UserError(f"reward.schedules.{name}: got {given!r}, expected {{{': …, '.join(known)}: …}}")
        for key, value in given.items():
            if key not in known:
                near = did_you_mean(str(key), known) or f"; there are {', '.join(known)}"
                raise UserError(f"reward.schedules.{name}.{key}: no such key{near}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"reward.schedules.{name}.{key}: got {value!r}, expected a number")
        found = Schedule(**given)
        if found.last <= found.first:
            raise UserError(
                f"reward.schedules.{name}.last: got {found.last:g}, expected more than first={found.first:g}"
            )
        return found

    def at(self, step: int) -> float:
        """The factor after ``step`` training steps."""
        done = (step - self.first) / (self.last - self.first)
        return self.start + (self.end - self.start) * min(max(done, 0.0), 1.0)


@dataclass
class Sum:
    """Σ weight · schedule · part; each part is logged by its name, before its weight.

    ``reward=sum +reward@reward.parts.quality=learned reward.parts.quality.path=… +reward.weights.quality=0.5
    '+reward.schedules.quality={start: 1, end: 0, first: 10, last: 30}'``: a line from 1 at step 10 to 0 at step 30
    """

    rlhf_api: ClassVar[int] = 1

    parts: dict[str, Any] = field(default_factory=dict)  # name → reward plugin
    weights: dict[str, float] = field(default_factory=dict)  # name → weight; 1 where none is given
    schedules: dict[str, Any] = field(default_factory=dict)  # name → start, end, first, last: a factor; none: always 1

    def setup(self, run: Run) -> None:
        """Set the parts up."""
        if not self.parts:
            raise UserError("reward.parts: empty; add one by +reward@reward.parts.NAME=PLUGIN")
        for setting, given in (("weights", self.weights), ("schedules", self.schedules)):
            if unknown := sorted(set(given) - set(self.parts)):
                raise UserError(f"reward.{setting}.{unknown[0]}: no such part; parts are {', '.join(self.parts)}")
        self.factors = {name: Schedule.of(name, given) for name, given in self.schedules.items()}
        self.run = run
        for part in self.parts.values():
            part.setup(run)

    def weight(self, name: str) -> float:
        """Of a part, at the step that training has reached."""
        weight, schedule = self.weights.get(name, 1.0), self.factors.get(name)
        return weight if schedule is None else weight * schedule.at(self.run.step)

    def score_parts(self, samples: Samples) -> Mapping[str, Tensor]:
        """``[B]`` float32 scores of each part before its weight, and as ``part/inner`` of those a part is made of."""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            score, inner = score_with_parts(part, samples)
            found[name] = score.cpu()
            found |= {f"{name}/{key}": value.cpu() for key, value in inner.items()}
        return found

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 weighted sums."""
        return self.total(self.score_parts(samples))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of scores made before."""
        return torch.stack([self.weight(name) * parts[name] for name in self.parts]).sum(0)

    def score_steps(self, samples: Samples) -> Sequence[Sequence[tuple[int, float]]] | None:
        """The weighted rewards on the way of all parts that have some; None where none has."""
        found: list[list[tuple[int, float]]] = [[] for _ in range(len(samples))]
        given = {name: step_rewards(part, samples) for name, part in self.parts.items()}
        for name, steps in given.items():
            for own, more in zip(found, steps or [()] * len(found), strict=True):
                own += [(place, self.weight(name) * value) for place, value in more]
        return None if all(steps is None for steps in given.values()) else found
