"""What holds of whole runs: they can be repeated, stopped and gone on with, and measured without being disturbed."""

from collections.abc import Iterator
from itertools import chain
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import checkpoints
from ...settings import Trainer as Every
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import World
from .algorithm_stage import Stage, Words, first_of, rows_for, stage_of

CHECKS = check = Checks()

STEPS, STOP = 4, 2
"""Steps of a run, and the one after which it is stopped."""
EVERY = Every(max_steps=STEPS, checkpoint_every=STOP, keep_checkpoints=9)
SHORT = Every(max_steps=2, checkpoint_every=0)


@check(
    "a run with the same seed gives the same metrics and weights, to the bit",
    why="what cannot be repeated can neither be resumed nor compared, nor can a bug in it be found",
    cure="draw by run.generator(words, step), which follows from the seed; no unseeded generator, clock, hash() or set "
    "order, and nothing kept on the class between two instances",
)
def repeats_to_the_bit(plugin: Any, world: World) -> None:
    """Two runs of a few steps."""
    _refuse_other_processors(world)
    first, second = (finished(world, plugin, SHORT) for _ in range(2))
    for found in chain(differences(first, second), differing_states(first, second)):
        fail(f"the second of two runs with one seed has {found}")


@check(
    "a run that was stopped and resumed has the metrics and weights of one that was not, to the bit",
    why="a stopped run would go on as another one, with a forgotten baseline, coefficient or place in the data",
    cure="give from state_dict() all that changes from step to step beside the parameters (tensors, numbers, strings, "
    "lists and dicts of them), take it back in load_state_dict(), and let collect(step) follow from seed and step",
)
def resumes_to_the_bit(plugin: Any, world: World) -> None:
    """A new instance goes on after two steps of four; global random numbers are restored, as the trainer does."""
    _refuse_other_processors(world)
    whole = finished(world, plugin)
    if whole.trainer.total <= STOP:
        raise NotApplicable(f"its {whole.trainer.total} steps are too few to be stopped between them")
    try:
        resumed = Stage(world, plugin, every=EVERY, checkpoint=checkpoints(whole.run.folder)[0])
    except UnpicklingError:
        odd = ", ".join(odd_entries(whole.algorithm.state_dict())) or "something"
        fail(
            f"state_dict() cannot be read back: {odd} is no tensor, number, string, list or dict of them",
            "state_dict() holds tensors, numbers, strings, and lists and dicts of them",
        )
    resumed.trainer.fit()
    for found in chain(differences(whole, resumed, after=STOP), differing_states(whole, resumed)):
        for _ in differences(whole, finished(world, plugin)):
            raise NotApplicable("two runs that were not stopped differ already; another check says so")
        fail(f"the run resumed after step {STOP} has {found}")


def odd_entries(state: Any, name: str = "state_dict()") -> Iterator[str]:
    """What cannot be read back by ``torch.load(weights_only=True)``, by where it is."""
    if isinstance(state, dict | list | tuple):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in pairs:
            yield from odd_entries(value, f"{name}[{key!r}]")
    elif not isinstance(state, Tensor) and type(state) not in (int, float, str, bool, type(None)):
        yield f"{name}, {type(state).__name__}"


def _refuse_other_processors(world: World) -> None:
    if world.device.type != "cpu":
        raise NotApplicable(f"sums on {world.device.type} are not the same to the bit; ask on a CPU")


def finished(world: World, plugin: Any, every: Every = EVERY) -> Stage:
    """A whole run."""
    stage = stage_of(world, plugin, every=every)
    stage.trainer.fit()
    return stage


def differences(first: Stage, second: Stage, after: int = 0) -> Iterator[str]:
    """What differs of two runs: metrics of steps beyond ``after``, then parameters."""
    rows = [{(step, phase): row for step, phase, row in stage.trainer.rows} for stage in (first, second)]
    for (step, phase), row in rows[0].items():
        other = rows[1].get((step, phase))
        if step <= after:
            continue
        if other is None or other.keys() != row.keys():
            yield f"other metrics in its {phase} row of step {step}: {sorted((other or {}).keys() ^ row.keys())}"
            return
        for name, value in row.items():
            if other[name] != value:
                yield f"{name} = {_number(other[name])} at step {step}, where it was {_number(value)}"
    for name, tensor in first.trained.items():
        if not torch.equal(tensor, second.trained[name]):
            gap = float((tensor - second.trained[name]).detach().abs().max())
            yield f"{name} {gap:.2g} away from where it was after {first.trainer.step} steps"


def differing_states(first: Stage, second: Stage) -> Iterator[str]:
    """What differs in what two algorithms would save of themselves."""
    states = [_told(stage.algorithm.state_dict()) for stage in (first, second)]
    for name in states[0]:
        if states[0][name] != states[1].get(name):
            yield f"{name!r} in state_dict() = {states[1].get(name)}, where it was {states[0][name]}"


def _number(text: str) -> str:
    try:
        return f"{float.fromhex(text):.9g}"
    except ValueError:
        return text


def _told(state: dict[str, Any]) -> dict[str, str]:
    return {name: str(value.tolist() if isinstance(value, Tensor) else value)[:200] for name, value in state.items()}


@check(
    "evaluate() leaves parameters, gradients, requires_grad and training mode as they were, and training as it was",
    why="a run would learn something else, or another dropout, for being looked at more often",
    cure="measure under LanguageModel.evaluating(), which restores the mode, with a generator of its own",
)
def evaluation_changes_nothing(plugin: Any, world: World) -> None:
    """Once between two batches, then in a run that evaluates at each step."""
    stage = Stage(world, plugin)
    if stage.trainer.total:
        stage.update(stage.gradients(first_of(stage)))
    before, modes = stage.snapshot(), _modes(stage)
    stage.algorithm.evaluate(1)
    stage.refuse_changes(before, "evaluate()")
    if stage.trainer.total:
        stage.gradients(first_of(stage))  # who sets the mode in collect() or loss() may leave it as it likes
    for name, mode in _modes(stage).items():
        fail_if(mode != modes[name], came=f"{name} was {modes[name]} before evaluate() and {mode} after it")
    if stage.trainer.total and world.device.type == "cpu":  # elsewhere no two runs are the same to the bit
        _refuse_disturbance(plugin, world)


def _modes(stage: Stage) -> dict[str, str]:
    parts = {f"module {name!r}": "in training mode" if part.training else "in eval mode"
             for name, part in stage.module.named_modules()}  # fmt: skip
    frozen = {
        name: "trained" if parameter.requires_grad else "frozen" for name, parameter in stage.module.named_parameters()
    }
    return parts | frozen | {"autograd": "on" if torch.is_grad_enabled() else "off"}


def _refuse_disturbance(plugin: Any, world: World) -> None:
    seldom = finished(world, plugin, SHORT)
    often = finished(world, plugin, Every(max_steps=2, checkpoint_every=0, eval_every=1))
    for stage in (seldom, often):
        stage.trainer.rows = [row for row in stage.trainer.rows if row[1] == "train"]
    for found in differences(seldom, often):
        for _ in differences(seldom, finished(world, plugin, SHORT)):
            raise NotApplicable("two runs alike differ already; another check says so")
        fail(f"a run that evaluates after each step has {found}")


@check(
    "batches of later steps hold other data",
    why="the rest of the data would never be seen",
    cure="choose by rlhf_core.packing.Order(count, batch_size, run.seed).batch(step)",
)
def goes_on_through_the_data(plugin: Any, world: World) -> None:
    """Gradients at parameters that stay; all are alike, too, where each step reads all of the data."""
    sizes = _sizes(stage_of(world, plugin))
    if len(sizes) < 2 or len(set(sizes)) > 1 or sizes[0] == 0:
        return
    half = _sizes(stage_of(world, plugin, data=Words(rows_for(plugin) // 2)))
    fail_if(
        half == sizes,
        came=f"the first {len(sizes)} steps have the same gradient (norm {sizes[0]:.6g}), with half of the data too",
    )


def _sizes(stage: Stage) -> list[float]:
    stage.nudge(0.02, seed=1)  # away from a reference, beside which all data are alike
    steps = range(min(3, stage.trainer.total))
    return [float(stage.gradients(stage.first(step)).flat().norm()) for step in steps]
