"""Stages that a pipeline runs in rounds: ``repeat`` names the last ones, ``rounds`` says how often.

Round 2 of stage ``ppo`` is called, and stored as, ``ppo_2``.
"""

from dataclasses import dataclass

from .errors import UserError, at_least
from .plugins import did_you_mean
from .settings import PipelineSettings


@dataclass(frozen=True)
class Turn:
    """One run of a stage; ``round`` counts from 1, and is None where the stage is not repeated."""

    name: str
    stage: str
    round: int | None = None


def turns(settings: PipelineSettings) -> list[Turn]:
    """All runs of all stages, in order.

    Raises:
        UserError: ``repeat`` is not the last stages in their order, or ``rounds`` has nothing to repeat.
    """
    check(settings)
    once = [Turn(name, name) for name in settings.stages if name not in settings.repeat]
    return once + [Turn(f"{name}_{k}", name, k) for k in range(1, settings.rounds + 1) for name in settings.repeat]


def check(settings: PipelineSettings) -> None:
    """Refuse rounds of what cannot be repeated."""
    at_least(1, rounds=settings.rounds)
    stages, repeat = list(settings.stages), settings.repeat
    for name in repeat:
        if name not in stages:
            near = did_you_mean(name, stages)
            raise UserError(f"repeat: pipeline {settings.name} has no stage {name}{near}; stages: {', '.join(stages)}")
    last = stages[-len(repeat) :] if repeat else []
    if repeat != last:
        raise UserError(
            f"repeat: got [{','.join(repeat)}], expected the last stages in their order, e.g. [{','.join(last)}]"
        )
    if settings.rounds > 1 and not repeat:
        raise UserError(
            f"rounds: got {settings.rounds}, but pipeline {settings.name} repeats no stage; name its last ones, "
            f"e.g. repeat=[{','.join(stages[-2:])}]"
        )
    taken = [turn for name in repeat for k in range(1, settings.rounds + 1) if (turn := f"{name}_{k}") in stages]
    if taken:
        raise UserError(f"stages.{taken[0]}: a round of a repeated stage is called so, too; rename the stage")
