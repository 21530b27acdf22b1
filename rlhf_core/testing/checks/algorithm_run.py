"""What holds of whole runs: they can be repeated, stopped and gone on with, and measured without being disturbed."""

import shutil
from collections.abc import Iterator
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
    first, second = (finished(world, plugin, SHORT) for _ in range(2))
    for found in differences(first, second):
        fail(f"the second of two runs with one seed has {found}")


@check(
    "a run that was stopped and resumed has the metrics and weights of one that was not, to the bit",
    why="a stopped run would go on as another one, with a forgotten baseline, coefficient or place in the data",
    cure="give from state_dict() all that changes from step to step beside the parameters (tensors, numbers, strings, "
    "lists and dicts of them), take it back in load_state_dict(), and let collect(step) follow from seed and step",
)
def resumes_to_the_bit(plugin: Any, world: World) -> None:
    """A new instance goes on after two steps of four; global random numbers are restored, as the trainer does."""
    whole = finished(world, plugin)
    if whole.trainer.total <= STOP:
        raise NotApplicable(f"its {whole.trainer.total} steps are too few to be stopped between them")
    resumed = Stage(world, plugin, every=EVERY)
    resumed.run.resume = True
    shutil.copytree(checkpoints(whole.run.folder)[0], resumed.run.folder / "checkpoints" / f"step_{STOP:06d}")
    try:
        resumed.begin(plugin)
    except UnpicklingError as error:
        fail(
            f"state_dict() cannot be read back: {str(error).splitlines()[0]}",
            "state_dict() holds tensors, numbers, strings, and lists and dicts of them",
        )
    resumed.trainer.fit()
    for found in differences(whole, resumed, after=STOP):
        for _ in differences(whole, finished(world, plugin)):
            raise NotApplicable("two runs that were not stopped differ already; another check says so")
        fail(f"the run resumed after step {STOP} has {found}")


def finished(world: World, plugin: Any, every: Every = EVERY) -> Stage:
    """A whole run."""
    stage = stage_of(world, plugin, every=every)
    stage.trainer.fit()
    return stage


def differences(first: Stage, second: Stage, after: int = 0) -> Iterator[str]:
    """What differs of two runs: metrics of steps beyond ``after``, parameters, then the algorithm's own state."""
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
    """Once by itself, after a step, then in a run that evaluates at each step."""
    stage = Stage(world, plugin)
    if stage.trainer.total:
        stage.update(stage.gradients(first_of(stage)))
    before, modes = stage.snapshot(), _modes(stage)
    stage.algorithm.evaluate(1)
    moved = [name for name, parameter in stage.trained.items() if not torch.equal(parameter, before[name])]
    fail_if(bool(moved), came=f"evaluate() changed {len(moved)} parameters, {moved[0] if moved else ''} among them")
    left = [name for name, parameter in stage.trained.items() if parameter.grad is not None]
    fail_if(
        bool(left), came=f"evaluate() left gradients in {len(left)} parameters, {left[0] if left else ''} among them"
    )
    for name, mode in _modes(stage).items():
        fail_if(mode != modes[name], came=f"{name} was {modes[name]} before evaluate() and {mode} after it")
    if stage.trainer.total:
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
