"""What an algorithm's methods have to give: a module, a number of steps, minibatches, a loss, plain metrics."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from math import isfinite
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.algorithm import Loss, completed
from ...optimizer import AdamW
from ..check import Checks, fail, fail_if
from ..world import Arms, World
from .algorithm_stage import WORTH, Stage, Watched, Words, first_of, rows_for, stage_of

CHECKS = check = Checks()


@check(
    "setup(run) gives a torch module on the run's device, with parameters to train, and `optimizer` is an AdamW",
    why="the trainer builds the optimiser from the module's parameters, clips them, and saves them in checkpoints",
    cure="return from setup() the nn.Module that is trained (of a LanguageModel its .model), moved to run.device",
)
def sets_up_what_it_trains(plugin: Any, world: World) -> None:
    """Whether or not it has steps: the optimiser is built before they are counted."""
    run = world.run(policy=Watched(), data=Words(rows_for(plugin)), reward=Arms(WORTH))
    run.settings.algorithm = plugin
    module = completed(plugin).setup(run)
    fail_if(not isinstance(module, nn.Module), came=f"setup() gave {_kind(module)}")
    named = list(module.named_parameters())
    trained = [name for name, parameter in named if parameter.requires_grad]
    fail_if(not trained, came=f"none of the module's {len(named)} parameters requires a gradient")
    away = [f"{name} on {parameter.device}" for name, parameter in named if parameter.device.type != run.device.type]
    fail_if(bool(away), came=f"{len(away)} parameters are not on {run.device}: {', '.join(away[:3])}")
    fail_if(
        not isinstance(plugin.optimizer, AdamW),
        came=f"optimizer is {_kind(plugin.optimizer)}",
        cure="give it a field `optimizer: AdamW = field(default_factory=AdamW)`, of rlhf_core.optimizer",
    )


@check(
    "total_steps is a whole number, 0 or more, and arithmetic() is one line of text",
    why="the trainer counts to total_steps, schedules follow it, and the line is what people read before they wait",
    cure="make total_steps a @property or a field, an int once setup() is done; return one str from arithmetic()",
)
def says_how_long_it_takes(plugin: Any, world: World) -> None:
    """A stage without steps has nothing to lose."""
    run = world.run(policy=Watched(), data=Words(rows_for(plugin)), reward=Arms(WORTH))
    run.settings.algorithm = plugin
    completed(plugin).setup(run)
    total = plugin.total_steps
    if not isinstance(total, Integral) or isinstance(total, bool) or total < 0:
        fail(f"total_steps is {_shown(total)}")
    line = plugin.arithmetic()
    if not isinstance(line, str) or not line.strip() or len(line.splitlines()) != 1:
        fail(f"arithmetic() gave {_shown(line)}")
    if total == 0 and (loss := _learns(plugin)) is not None:
        fail(f"total_steps is 0, but the batch of step 0 has a loss of {float(loss.value):.4g}: it is never trained on")


def _learns(plugin: Any) -> Loss | None:
    """A loss that could be trained on; None where a stage is meant to have no steps."""
    try:
        loss = plugin.loss(next(iter(next(iter(plugin.minibatches(plugin.collect(0)))))))
    except Exception:  # whatever it says to this: it has no steps
        return None
    return loss if isinstance(loss, Loss) and loss.value.requires_grad else None


@check(
    "minibatches(batch) gives lists of microbatches, at least one of each",
    why="the trainer makes one optimiser step of each list, and deals its microbatches out to processes",
    cure="yield a list of microbatches for each optimiser step, as rlhf_core.experience.minibatches does",
)
def gives_minibatches_of_microbatches(plugin: Any, world: World) -> None:
    """Of the first three steps: a batch may have nothing to teach."""
    stage, seen = stage_of(world, plugin), 0
    for step in range(min(3, stage.trainer.total)):
        found = stage.algorithm.minibatches(stage.algorithm.collect(step))
        fail_if(not hasattr(found, "__iter__"), came=f"minibatches() of step {step} gave {_kind(found)}")
        for number, minibatch in enumerate(found):
            wrong = not isinstance(minibatch, Sequence) or isinstance(minibatch, str)
            fail_if(wrong, came=f"minibatch {number} of step {step} is {_kind(minibatch)}, no list")
            seen += len(minibatch)
    fail_if(seen == 0, came="not one microbatch in the first steps")


@check(
    "loss(microbatch) gives a Loss whose value is one finite number with a gradient",
    why="the trainer calls backward() on it; one NaN spoils all weights, and a number without gradient trains nothing",
    cure="return a Loss (rlhf_core.contracts.algorithm) of a 0-dim tensor that has a graph; guard divisions and logs",
)
def gives_a_finite_loss(plugin: Any, world: World) -> None:
    """Of all microbatches of the first minibatch."""
    stage = stage_of(world, plugin)
    for number, microbatch in enumerate(first_of(stage)):
        loss = stage.algorithm.loss(microbatch)
        fail_if(not isinstance(loss, Loss), came=f"loss() gave {_kind(loss)}")
        value = loss.value
        if not isinstance(value, Tensor) or value.numel() != 1:
            fail(f"the value is {_shown(value)}")
        fail_if(not bool(value.isfinite().all()), came=f"the loss of microbatch {number} is {float(value)}")
        fail_if(
            not value.requires_grad,
            came=f"the loss of microbatch {number}, {float(value):.4g}, has no gradient",
            cure="compute it from the module's outputs, outside torch.no_grad(), and detach only what is compared with",
        )


@check(
    "metrics are finite numbers without a gradient, named by words; weights are 0 or more",
    why="they are averaged by weight and written as JSON; a metric that holds the graph holds the whole step's memory",
    cure="detach tensors, turn those of metrics(batch) into floats, leave out what cannot be computed; "
    "the weight is what the metrics are means over",
)
def gives_plain_metrics(plugin: Any, world: World) -> None:
    """Of the first minibatch's losses, and of the whole batch."""
    stage = stage_of(world, plugin)
    batch = stage.algorithm.collect(0)
    minibatch = next((list(found) for found in stage.algorithm.minibatches(batch) if len(found)), [])
    weights = []
    for microbatch in minibatch:
        loss = stage.algorithm.loss(microbatch)
        refuse_odd("Loss.metrics", loss.metrics, tensors=True)
        weights.append(loss.weight)
        if not isinstance(loss.weight, int | float) or not isfinite(loss.weight) or loss.weight < 0:
            fail(f"Loss.weight is {_shown(loss.weight)}")
    fail_if(bool(weights) and not any(weights), came="Loss.weight is 0 of every microbatch: all metrics would read 0")
    refuse_odd("metrics(batch)", stage.algorithm.metrics(batch), tensors=False)


@check(
    "evaluate(step) gives finite floats by name, and headline() makes one line of them",
    why="they are written to metrics.jsonl and summary.json; what JSON cannot hold ends the run after the training",
    cure="return {name: float(value)} from evaluate(), {} where nothing is held out; return one str from headline()",
)
def evaluates_to_plain_numbers(plugin: Any, world: World) -> None:
    """Before the first step, as the trainer does it."""
    stage = Stage(world, plugin)
    found = stage.algorithm.evaluate(0)
    refuse_odd("evaluate(0)", found, tensors=False)
    line = stage.algorithm.headline(found)
    if not isinstance(line, str) or not line.strip() or len(line.splitlines()) != 1:
        fail(f"headline() gave {_shown(line)}")


def refuse_odd(source: str, metrics: Any, *, tensors: bool) -> None:
    """Fail where metrics are not finite numbers by name; ``tensors``: 0-dim tensors without graph are fine too."""
    fail_if(not isinstance(metrics, Mapping), came=f"{source} is {_kind(metrics)}, expected a dict")
    for name, value in metrics.items():
        fail_if(not isinstance(name, str), came=f"{source} has a metric named {name!r}, which is no text")
        fail_if(name in ("step", "phase"), came=f"{source} has a metric {name!r}, which every row of metrics.jsonl has")
        if isinstance(value, Tensor) and tensors:
            fail_if(value.numel() != 1, came=f"{source}: {name} has shape {list(value.shape)}")
            fail_if(value.requires_grad, came=f"{source}: {name} still holds the graph of the loss")
        else:
            fail_if(not isinstance(value, int | float), came=f"{source}: {name} is {_kind(value)}")
        fail_if(not isfinite(float(value)), came=f"{source}: {name} is {float(value)}")


@check(
    "collect(), loss() and metrics() leave parameters and gradients alone; a loss can be asked again",
    why="the trainer sums the gradients of microbatches, clips them and makes the step; epochs go over a batch again",
    cure="call neither backward() nor an optimiser of your own; change no tensor of the batch in place",
)
def leaves_the_update_to_the_trainer(plugin: Any, world: World) -> None:
    """The same microbatch twice, with the same random numbers."""
    stage = stage_of(world, plugin)
    before = stage.snapshot()
    batch = stage.algorithm.collect(0)
    stage.refuse_changes(before, "collect()")
    minibatches = iter(stage.algorithm.minibatches(batch))
    microbatches = next((list(found) for found in minibatches if len(found)), [])
    for microbatch in microbatches[:1]:
        state = torch.get_rng_state()
        first = stage.algorithm.loss(microbatch)
        stage.refuse_changes(before, "loss()")
        first.value.backward()
        gradients = _taken(stage)
        torch.set_rng_state(state)
        again = stage.algorithm.loss(microbatch)
        again.value.backward()
        _refuse_difference(float(first.value), float(again.value), gradients, _taken(stage))
    stage.algorithm.metrics(batch)
    stage.refuse_changes(before, "metrics()")


def _taken(stage: Stage) -> dict[str, Tensor]:
    found = {name: deepcopy(parameter.grad) for name, parameter in stage.trained.items() if parameter.grad is not None}
    stage.module.zero_grad(set_to_none=True)
    return found


def _refuse_difference(first: float, again: float, mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    close = abs(first - again) <= 1e-5 * max(1.0, abs(first)) or not isfinite(first)  # another check says that
    fail_if(not close, came=f"the loss of one microbatch was {first:.6g}, and {again:.6g} when it was computed again")
    size = max((float(gradient.abs().max()) for gradient in mine.values()), default=0.0)
    for name in _differing(mine, other, size):
        fail(f"the gradient of {name} was another one when the same microbatch's loss was computed again")


def _differing(mine: dict[str, Tensor], other: dict[str, Tensor], size: float) -> Iterator[str]:
    for name in mine.keys() | other.keys():
        if name not in mine or name not in other or not bool((mine[name] - other[name]).abs().max() <= 1e-4 * size):
            yield name


def _kind(value: Any) -> str:
    name = type(value).__qualname__
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{name!r}"


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, Tensor) else repr(value)[:200]
