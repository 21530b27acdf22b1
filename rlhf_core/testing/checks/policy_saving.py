"""What a policy saves: a checkpoint that plain transformers reads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...contracts.policy import Policy
from ...failure import flat
from ...language_model import LanguageModel
from ..check import Checks, fail, fail_if
from ..world import World
from .policy_models import allowed, gap, made, padded, saved, sequences, train

CHECKS = check = Checks()


@check(
    "save writes what AutoModelForCausalLM and AutoTokenizer read, with the same log-probs",
    why="a stage's result is the next stage's start, and what people load to use it",
    cure="save_pretrained of the whole model, adapters merged, and of the tokenizer, into the folder that is given",
)
def is_saved_as_a_plain_checkpoint(policy: Policy, world: World) -> None:
    """Without trust_remote_code; as it is at the start."""
    model = made(policy, world)
    own = _stock(model.model, model)
    folder = saved(model, world)
    _compare(model, own, folder, "")
    tokenizer = _tokenizer(folder)
    fail_if(tokenizer.get_vocab() != model.tokenizer.get_vocab(), came="the saved tokenizer has other tokens")
    fail_if(
        tokenizer.eos_token_id != model.tokenizer.eos_token_id,
        came=f"the end token is {model.tokenizer.eos_token_id}, and {tokenizer.eos_token_id} when it was saved",
    )
    ours, read = model.tokenizer.chat_template, tokenizer.chat_template
    fail_if(ours != read, came=f"the chat template is {ours!r}, and {read!r} when it was saved")


@check(
    "save writes the weights as they are after training",
    why="the result of a run would be the model that it started from",
    cure="save self.model itself, with its adapters merged into it; not the checkpoint that it came from",
)
def saves_what_was_trained(policy: Policy, world: World) -> None:
    """After three steps."""
    model = made(policy, world)
    before = _stock(model.model, model)
    train(model)
    own = _stock(model.model, model)
    moved = max(gap(one, two) for one, two in zip(before, own, strict=True))
    _compare(model, own, saved(model, world), f", after steps that changed them by up to {moved:.4f}")


@check(
    "save leaves the model as it is",
    why="runs go on after a save: with merged adapters or moved weights they would train something else",
    cure="merge adapters into a copy: copy.deepcopy(model).merge_and_unload()",
)
def saving_changes_nothing(policy: Policy, world: World) -> None:
    """Its parameters, what is trained, its mode and its log-probs."""
    model = made(policy, world)
    model.model.train()
    before = {name: (weight.requires_grad, weight.dtype) for name, weight in model.model.named_parameters()}
    values = {name: weight.detach().clone() for name, weight in model.model.named_parameters()}
    saved(model, world)
    after = {name: (weight.requires_grad, weight.dtype) for name, weight in model.model.named_parameters()}
    other = sorted(before.keys() ^ after.keys()) or [name for name in before if before[name] != after[name]]
    fail_if(bool(other), came=f"after it {', '.join(other[:3])} {'are' if len(other) > 1 else 'is'} not as before")
    moved = [name for name, weight in model.model.named_parameters() if gap(weight, values[name]) > 0]
    fail_if(bool(moved), came=f"after it {', '.join(moved[:3])} has other values")
    fail_if(not model.model.training, came="after it the model is in eval mode")


def _compare(model: LanguageModel, expected: list[Tensor], folder: Path, when: str) -> None:
    stock = _stock(_loaded(folder).to(model.device).eval(), model)
    for number, (own, read) in enumerate(zip(expected, stock, strict=True)):
        if gap(own, read) > allowed(model.model):
            place, word = divmod(int((own - read).abs().argmax()), own.shape[1])
            fail(
                came=f"log-probs differ by up to {gap(own, read):.4f}{when}: of word {word} behind token {place} of "
                f"sequence {number}, {float(own[place, word]):.4f} before and {float(read[place, word]):.4f} as read"
            )


def _loaded(folder: Path) -> Any:
    names = sorted(path.name for path in folder.glob("*"))
    if "adapter_config.json" in names:
        fail(came=f"adapters alone were saved, which need their base model: {', '.join(names)}")
    try:
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    except (OSError, ValueError) as error:
        fail(came=f"transformers cannot read the model ({flat(error)}); saved were {', '.join(names) or 'no files'}")


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError):
        fail(
            came=f"transformers finds no tokenizer beside {', '.join(sorted(path.name for path in folder.glob('*')))}",
            cure="save the tokenizer as well: self.tokenizer.save_pretrained(folder)",
        )


def _stock(model: Any, language_model: LanguageModel) -> list[Tensor]:
    found = sequences(language_model)
    training = model.training
    model.eval()
    with torch.no_grad():
        logprobs = padded(model, found, "right", language_model.end)
    model.train(training)
    return logprobs
