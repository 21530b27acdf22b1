"""What a rollout leaves behind: the model as it was."""

from typing import Any

import torch
from torch import nn

from ...batch import Packed
from ...contracts.rollout import RolloutEngine
from ...language_model import unadapted
from ..check import Checks, fail, fail_if
from ..world import World
from .rollout_sampling import PROMPTS, plain, sample_by

CHECKS = check = Checks()


@check(
    "the model is in the mode it was in",
    why="training goes on after the rollout: with dropout that was to be off, or without the one that was to be on",
    cure="sample inside `with model.evaluating():`, which puts the mode back",
)
def the_mode_is_put_back(engine: RolloutEngine, world: World) -> None:
    """From training and from eval mode."""
    model = world.model
    for training in (True, False):
        model.model.train(training)
        sample_by(plain(engine), model, PROMPTS)
        other = [name for name, module in model.model.named_modules() if module.training != training]
        names = {True: "training mode", False: "eval mode"}
        if other:
            part = other[0] or "the model"
            fail(came=f"the model was in {names[training]}, {part} is in {names[not training]} after the call")


@check(
    "gradients are on or off as they were",
    why="the next loss has no gradient, and the policy stays as it is without a word",
    cure="use `with torch.no_grad():` or `with model.decoding():`, not torch.set_grad_enabled(False)",
)
def the_grad_mode_is_put_back(engine: RolloutEngine, world: World) -> None:
    """On before the call; torch's default dtype is left alone as well."""
    dtype = torch.get_default_dtype()
    try:
        with torch.enable_grad():
            plain(engine).generate(world.model, [list(prompt) for prompt in PROMPTS], torch.Generator().manual_seed(0))
            fail_if(not torch.is_grad_enabled(), came="gradients were on before the call and are off after it")
            fail_if(torch.is_inference_mode_enabled(), came="inference mode is still on after the call")
        fail_if(
            torch.get_default_dtype() != dtype,
            came=f"torch's default dtype was {dtype} and is {torch.get_default_dtype()}",
            cure="give tensors their dtype; leave torch.set_default_dtype alone",
        )
    finally:
        torch.set_default_dtype(dtype)


@check(
    "the parameters are what they were, and can be trained",
    why="a rollout looks at the policy; one that casts, freezes or changes weights trains another model",
    cure="sample with the weights as they are; cast or merge a copy of them, not the model's own",
)
def the_parameters_are_left_alone(engine: RolloutEngine, world: World) -> None:
    """Values, dtypes, what requires grad, gradients under way, and the attention that packed rows need."""
    model = world.model
    frozen = next(iter(model.model.parameters())).requires_grad_(False)
    row = Packed.of([[*prompt, 5] for prompt in PROMPTS], model.device)
    model.logprobs(row).sum().backward()  # type: ignore[no-untyped-call]
    before = _facts(model.model)
    sample_by(plain(engine), model, PROMPTS)
    after = _facts(model.model)
    if gone := sorted(before.keys() ^ after.keys()):
        fail(came=f"{gone[0]} is {'gone' if gone[0] in before else 'new'} after the call")
    for name, facts in before.items():
        for what, value in facts.items():
            now = after[name][what]
            fail_if(not _same(value, now), came=f"{name} has another {what} after the call{_values(value, now)}")
    fail_if(frozen.requires_grad, came="a frozen parameter requires grad after the call")
    config = unadapted(model.model).config
    fail_if(
        config._attn_implementation != "rlhf",
        came=f"the model's attention is {config._attn_implementation!r} after the call",
        cure="leave set_attn_implementation alone: training needs the attention that packed rows are for",
    )


def _facts(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "value": weight.detach().clone(),
            "dtype": weight.dtype,
            "requires_grad": weight.requires_grad,
            "gradient": None if weight.grad is None else weight.grad.clone(),
            "state (made in inference mode)": weight.is_inference(),
        }
        for name, weight in model.named_parameters()
    }


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return before.dtype == after.dtype and torch.equal(before, after)
    return type(before) is type(after) and bool(before == after)


def _values(before: Any, after: Any) -> str:
    if isinstance(before, torch.Tensor) or isinstance(after, torch.Tensor):
        return ""
    return f": {before}, now {after}"
