"""A policy's scalar model, of which reward models and critics are made.

N packed tokens, B sequences.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ...batch import Packed
from ...contracts.policy import Policy
from ...errors import UserError
from ...language_model import hidden_states
from ...scalar_model import ScalarModel
from ..check import Checks, NotApplicable, fail, fail_if
from ..process import seed
from ..world import World
from .policy_models import allowed, answers, gap, made, packed, saved, scalar, scorer, sequences, train, unlike

CHECKS = check = Checks()


@check(
    "scalar_model gives a rlhf_core.scalar_model.ScalarModel: [N] finite float32, and last() the ones of last tokens",
    why="the reward model reads the last token of each sequence, the critic all of them",
    cure="return ScalarModel(model, tokenizer) with a …ForSequenceClassification model of one label",
)
def gives_one_number_a_token(policy: Policy, world: World) -> None:
    """From the policy's own checkpoint, or where it has none from what it saves."""
    model = scalar(policy, world)
    fail_if(not isinstance(model, ScalarModel), came=f"it gave {type(model).__name__}")
    _with_a_head(model)
    for row in (packed(model, sequences(model)), Packed.answers(*answers(model), world.device)):
        with torch.no_grad():
            found = model(row)
        fail_if(
            tuple(found.shape) != tuple(row.tokens.shape) or found.dtype != torch.float32,
            came=f"{len(row.tokens)} tokens gave shape {list(found.shape)} of {found.dtype}",
        )
        fail_if(not bool(found.isfinite().all()), came="some are not finite")
    for tokens in sequences(model):
        row = packed(model, [tokens])
        with torch.no_grad():
            expected, last = model(row)[-1:], model.last(row)
        came = f"last() gave {_shown(last)} of {len(tokens)} tokens, of which the last one has {_shown(expected)}"
        fail_if(gap(expected, last) > allowed(model), came=came)


@check(
    "scores are the same for a sequence in a packed row, alone, and behind a prompt that neighbours share",
    why="what else is in a batch would change rewards and values",
    cure="keep cu_seqlens and positions of each sequence (ScalarModel does it)",
)
def scores_packed_equal_apart(policy: Policy, world: World) -> None:
    """At every token."""
    model = scorer(policy, world)
    _with_a_head(model)
    prompts, responses = answers(model)
    whole = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    together, shared = packed(model, whole), Packed.answers(prompts, responses, world.device)
    with torch.no_grad():
        apart = [model(packed(model, [tokens])) for tokens in whole]
        rows = {
            "in a row with others": together.split(model(together)),
            "behind a shared prompt": shared.split(model(shared)),
        }
        ends = [model.last(packed(model, [tokens])) for tokens in whole]
        lasts = {"in a row with others": model.last(together), "behind a shared prompt": model.last(shared)}
    for name, read in lasts.items():
        if told := unlike(ends, list(read[:, None]), allowed(model)):
            fail(came=f"last(): {told.replace('token 0', 'the last token')}, first alone, then {name}")
    for name, found in rows.items():
        if told := unlike(apart, found, allowed(model)):
            fail(came=f"{told}, first alone, then {name}")


@check(
    "a gradient reaches every parameter of the scalar model that requires one, its head among them",
    why="a reward model whose trunk or head stays as it was learns next to nothing",
    cure="leave requires_grad on for what is to be trained, and detach nothing",
)
def scores_have_gradients(policy: Policy, world: World) -> None:
    """In three steps together."""
    model = scorer(policy, world)
    _with_a_head(model)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    fail_if(not model.head.weight.requires_grad, came="its head does not require grad")
    optimizer, reached = torch.optim.Adam(weights.values(), lr=0.01), set()
    row = packed(model, sequences(model, 3, (9, 12, 10, 12)))
    for step in range(3):
        optimizer.zero_grad()
        values = model(row)
        loss = (values * torch.linspace(-1, 2 + step, len(values), device=values.device)).sum() + model.last(row).sum()
        fail_if(not loss.requires_grad, came="the scores have no gradient at all")
        loss.backward()
        reached |= {n for n, weight in weights.items() if weight.grad is not None and bool(weight.grad.any())}
        optimizer.step()
    missed = [name for name in weights if name not in reached]
    shown = ", ".join(missed[:3]) + (", …" if len(missed) > 3 else "")
    fail_if(bool(missed), came=f"{len(missed)} of {len(weights)} get none: {shown}")


@check(
    "scalar_model(path) starts from the checkpoint at path",
    why="the critic starts from the reward model by its path, and the reward model from a stage's result",
    cure="load AutoModelForSequenceClassification.from_pretrained(path, num_labels=1), and its tokenizer",
)
def scores_start_from_the_path(policy: Policy, world: World) -> None:
    """A language model's that was trained, so that it is not the policy's own."""
    model = made(policy, world)
    row, own = packed(model, sequences(model)), _trunk(saved(model, world), model)
    train(model)
    expected = _trunk(folder := saved(model, world), model)
    try:
        found = policy.scalar_model(str(folder)).to(world.device).eval()
    except UserError as refusal:
        fail(came=f"it refuses a checkpoint that it saved: {refusal}")
    with torch.no_grad():
        states = [part.cpu().float() for part in row.split(hidden_states(found.model, row))]
    differs, same = (max(gap(a, b) for a, b in zip(states, other, strict=True)) for other in (expected, own))
    most = 10 * max(allowed(model.model), allowed(found.model))
    meant = "; they are those of the policy's own start" if same <= most else ""
    fail_if(differs > most, came=f"its hidden states differ from the checkpoint's by up to {differs:.3f}{meant}")
    fail_if(found.tokenizer.get_vocab() != model.tokenizer.get_vocab(), came="its tokenizer has other tokens")


@check(
    "scalar_model() starts from the policy's own checkpoint",
    why="a reward model that starts from random weights has to learn the language from the rankings",
    cure="start it from what language_model starts from",
)
def scores_start_from_the_policy(policy: Policy, world: World) -> None:
    """Where the policy is the same model at every seed, so that it has a start of its own."""
    models = []
    for number in (0, 1):
        seed(number)
        models.append(made(policy, world))
    one, two = ([weight.detach() for weight in model.model.base_model.parameters()] for model in models)  # type: ignore[union-attr]
    frozen = [not weight.requires_grad for weight in models[0].model.base_model.parameters()]  # type: ignore[union-attr]
    fixed = [keep for keep in zip(one, two, frozen, strict=True) if keep[2] or all(not flag for flag in frozen)]
    if any(gap(a, b) > 0 for a, b, _ in fixed):
        raise NotApplicable("it draws new weights")
    try:
        found = policy.scalar_model().to(world.device).eval()
    except UserError as refusal:
        raise NotApplicable(f"it needs a path: {refusal}") from refusal
    row = packed(models[0], sequences(models[0]))
    with torch.no_grad():
        differs = gap(hidden_states(models[0].model, row), hidden_states(found.model, row))
    fail_if(
        differs > 10 * allowed(models[0].model),
        came=f"its hidden states differ from the policy's by up to {differs:.3f}",
    )


@check(
    "the scalar model shares no trained parameter with the language model",
    why="the critic is trained beside the policy: each would move the other",
    cure="load or copy the weights for each of them",
)
def scores_share_nothing_with_the_policy(policy: Policy, world: World) -> None:
    """Of one plugin, in one run."""
    model, other = made(policy, world), scorer(policy, world)
    own = {weight.data_ptr(): name for name, weight in model.model.named_parameters() if weight.requires_grad}
    shared = [own[weight.data_ptr()] for weight in other.parameters() if weight.data_ptr() in own]
    fail_if(bool(shared), came=f"{len(shared)} are the policy's own: {', '.join(shared[:3])}")


@check(
    "a scalar model is saved as AutoModelForSequenceClassification reads it, and scalar_model(path) as well",
    why="the reward model of one stage scores in the next, in another process",
    cure="leave save() to ScalarModel: num_labels 1, adapters merged, its bias as config.score_bias",
)
def scores_survive_a_save(policy: Policy, world: World) -> None:
    """With a head and a bias that are not 0."""
    model = scorer(policy, world)
    _with_a_head(model)
    folder = world.new_folder() / "reward_model"
    model.save(folder)
    found = sequences(model)
    with torch.no_grad():
        expected = [model(packed(model, [tokens])).cpu() for tokens in found]
    if told := unlike(expected, _stock_scores(folder, found, world), allowed(model)):
        fail(came=f"{told}, first as it was saved, then by stock transformers less config.score_bias")
    again = policy.scalar_model(str(folder)).to(world.device).eval()
    with torch.no_grad():
        read = [again(packed(again, [tokens])).cpu() for tokens in found]
    if told := unlike(expected, read, allowed(model)):
        fail(came=f"{told}, first as it was saved, then by scalar_model(path)")


def _with_a_head(model: ScalarModel) -> None:
    seed(6)
    model.reset_head(std=0.3)
    model.bias.fill_(0.25)


def _stock_scores(folder: Path, found: list[list[int]], world: World) -> list[Tensor]:
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    loaded.to(world.device).eval()
    bias = float(getattr(loaded.config, "score_bias", 0.0))
    if loaded.config.num_labels != 1:
        fail(came=f"the saved classifier has {loaded.config.num_labels} labels")
    with torch.no_grad():
        states = [
            loaded.base_model(input_ids=torch.tensor([tokens], device=world.device)).last_hidden_state
            for tokens in found
        ]
        return [loaded.score(state.to(loaded.score.weight.dtype))[0, :, 0].float().cpu() - bias for state in states]


def _trunk(folder: Path, model: Any) -> list[Tensor]:
    """``[length, H]`` hidden states by stock transformers."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    except (OSError, ValueError) as error:
        raise NotApplicable("what it saves cannot be read, see is_saved_as_a_plain_checkpoint") from error
    loaded.to(model.device).eval()
    with torch.no_grad():
        return [
            loaded.base_model(input_ids=torch.tensor([tokens], device=model.device)).last_hidden_state[0].float().cpu()
            for tokens in sequences(model)
        ]


def _shown(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values.flatten().tolist()) + "]"
