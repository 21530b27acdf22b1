"""Where an algorithm's gradient has to go, and that it does not depend on how a minibatch is cut to fit memory."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...settings import Trainer as Every
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import World
from .algorithm_stage import Gradients, Stage, fast, first_of, stage_of

CHECKS = check = Checks()

STEPS = 4
"""Batches after which every parameter has had a gradient: a head of zeros lets none through at first, nor does LoRA."""
ONE_PIECE = 1_000_000
BUDGETS = (60, 1)
"""Tokens of a microbatch: several sequences of about 12 tokens, of different lengths, and one sequence each."""


@check(
    "every trained parameter gets a finite gradient that is not 0 within the first few steps",
    why="what gets none is not trained, whatever the run's log says; a gradient that is not finite ends the run",
    cure="compute the loss from these parameters without detach() or no_grad(); freeze what is not to be trained by "
    "requires_grad_(False), or leave it out of the module that setup() returns",
)
def gradient_reaches_every_parameter(plugin: Any, world: World) -> None:
    """By tensors: a small vocabulary has rows that no batch needs."""
    stage = stage_of(world, fast(plugin))
    waiting, done = dict.fromkeys(stage.trained), 0
    for step in range(STEPS):
        for minibatch in stage.minibatches(step % stage.trainer.total):
            gradients = stage.gradients(minibatch)
            for name, gradient in gradients.of.items():
                fail_if(
                    not bool(gradient.isfinite().all()), came=f"the gradient of {name} is not finite at step {step}"
                )
                if bool(gradient.any()):
                    waiting.pop(name, None)
            stage.update(gradients)
            done += 1
        if not waiting:
            return
    missed = list(waiting)
    fail(
        f"{len(missed)} of {len(stage.trained)} parameters had no gradient in {done} optimiser steps: "
        f"{', '.join(missed[:4])}{', …' if len(missed) > 4 else ''}"
    )


@check(
    "the loss has no parameters beside those of the module that setup() returned",
    why="others get gradients that nobody clips, applies or clears, or are meant to be trained and never are",
    cure="freeze a reference by LanguageModel.frozen() or ask it under torch.no_grad(); return all that is trained "
    "from setup(), several models as nn.ModuleDict",
)
def trains_nothing_beside_its_module(plugin: Any, world: World) -> None:
    """All leaves of the graph of the first loss are looked at."""
    stage = stage_of(world, plugin)
    mine = {id(parameter) for parameter in stage.module.parameters()}
    for microbatch in first_of(stage)[:1]:
        others = [leaf for leaf in leaves(stage.algorithm.loss(microbatch).value) if id(leaf) not in mine]
        if others:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in others[:3])
            fail(f"the loss has a gradient to {len(others)} tensors outside the module, of shapes {shapes}")


def leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors that require a gradient from which a value was computed."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


@check(
    "a minibatch has the same gradient in one piece and in many (trainer.microbatch_tokens)",
    why="microbatches only bound memory: another GPU, or two of them, must not train another model",
    cure="divide each microbatch's sum by what the whole minibatch holds (Microbatch.tokens, .sequences), never by its "
    "own count; take baselines and whitening from the whole batch",
)
def gradients_add_up_over_microbatches(plugin: Any, world: World) -> None:
    """Of a policy that has moved away from its reference, and since it sampled."""
    whole, cut = one_piece_and_many(plugin, world)
    for name, difference in unequal(whole, cut):
        mine, other = whole.flat(), cut.flat()
        ratio = float(other @ mine / (mine @ mine).clamp(min=1e-30))
        fail(
            f"in {cut.pieces} microbatches the gradient is {ratio:.3g} times that in {whole.pieces} "
            f"({name} differs by {difference:.2g} of {float(whole.of[name].abs().max()):.2g})",
            cure=_told_by(ratio, cut.pieces / whole.pieces),
        )


def unequal(whole: Gradients, cut: Gradients) -> Iterator[tuple[str, float]]:
    """Parameters whose gradients differ by more than rounding, and by how much."""
    size = whole.largest
    for name, gradient in whole.of.items():
        difference = float((cut.of[name] - gradient).abs().max())
        if not difference <= 1e-3 * float(gradient.abs().max()) + 1e-5 * size:
            yield name, difference


def _told_by(ratio: float, pieces: float) -> str:
    if abs(ratio / pieces - 1) < 0.25:
        return (
            "each microbatch is divided by its own count: divide by the whole minibatch's (Microbatch.tokens or "
            ".sequences), so that the pieces' gradients add up"
        )
    return ""


@check(
    "a minibatch has the same metrics in one piece and in many (trainer.microbatch_tokens)",
    why="curves of two machines could not be compared",
    cure="give metrics as means over what Loss.weight counts, the microbatch's own tokens or pairs (sums: divided by "
    "that count); name largest values …_max",
)
def metrics_average_over_microbatches(plugin: Any, world: World) -> None:
    """As their gradients."""
    whole, cut = one_piece_and_many(plugin, world)
    for _ in unequal(whole, cut):
        raise NotApplicable("the gradients differ already; another check says so")
    for name, value in whole.metrics.items():
        other = cut.metrics.get(name, float("nan"))
        same = abs(other - value) <= 1e-3 * abs(value) + 1e-4 or (value != value and other != other)
        fail_if(not same, came=f"{name} is {value:.5g} in {whole.pieces} microbatch, {other:.5g} in {cut.pieces}")


def one_piece_and_many(plugin: Any, world: World) -> tuple[Gradients, Gradients]:
    """The first minibatch of a batch, as a whole and cut.

    Raises:
        NotApplicable: it does not cut minibatches, which it need not.
    """
    whole = _moved(plugin, world, ONE_PIECE)
    for budget in BUDGETS:
        cut = _moved(plugin, world, budget)
        if cut.pieces > max(whole.pieces, 2):
            for _ in unequal(whole, _moved(plugin, world, ONE_PIECE)):
                raise NotApplicable("its batches cannot be repeated; another check says so")
            return whole, cut
    raise NotApplicable(f"a minibatch has {whole.pieces} microbatch, whatever trainer.microbatch_tokens is")


def _moved(plugin: Any, world: World, budget: int) -> Gradients:
    stage: Stage = stage_of(world, plugin, every=Every(checkpoint_every=0, microbatch_tokens=budget))
    stage.nudge(0.02, seed=1)  # away from the reference
    batch = stage.algorithm.collect(0)
    stage.nudge(0.02, seed=2)  # away from the policy that sampled
    return stage.gradients(next((list(found) for found in stage.algorithm.minibatches(batch) if len(found)), []))
