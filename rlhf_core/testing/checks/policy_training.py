"""What of a policy is trained, where it starts, and the reference that stays behind."""

from typing import Any

import torch
from torch import nn

from ...contracts.policy import Policy
from ..check import Checks, NotApplicable, fail, fail_if
from ..process import seed
from ..world import World
from .policy_models import allowed, gap, made, packed, sequences, train, unlike

CHECKS = check = Checks()


@check(
    "the same seed gives the same weights and the same tokenizer",
    why="a resumed run builds the policy anew and fills it by name; a repeated one has to start where the first did",
    cure="draw new weights with torch's global generator, which the run seeds, and nothing else",
)
def the_same_seed_gives_the_same_model(policy: Policy, world: World) -> None:
    """Twice, from the same state of all generators."""
    found = []
    for _ in range(2):
        seed(0)
        found.append(made(policy, world))
    one, two = ({name: weight for name, weight in model.model.named_parameters()} for model in found)
    fail_if(one.keys() != two.keys(), came=f"only one of two has {', '.join(sorted(one.keys() ^ two.keys())[:3])}")
    for name, weight in one.items():
        fail_if(gap(weight, two[name]) > 0, came=f"{name} differs by up to {gap(weight, two[name]):.3g}")
    vocabularies = [model.tokenizer.get_vocab() for model in found]
    fail_if(vocabularies[0] != vocabularies[1], came="the tokenizers have other tokens")


@check(
    "some parameters require grad, and all are finite",
    why="what requires grad is trained: without any, the optimiser has nothing to do",
    cure="leave requires_grad on for what is to be trained, with adapters for the adapters",
)
def something_is_trained(policy: Policy, world: World) -> None:
    """As language_model gives it."""
    model = made(policy, world)
    weights = dict(model.model.named_parameters())
    fail_if(not any(weight.requires_grad for weight in weights.values()), came=f"none of {len(weights)} does")
    odd = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    fail_if(bool(odd), came=f"{', '.join(odd[:3])} is not finite")


@check(
    "a gradient reaches every parameter that requires one",
    why="a parameter that gets none is weight decay's alone: it looks trained and is not",
    cure="let no detach, no_grad or .data stand between parameters and log-probs; freeze what is not used",
)
def gradient_reaches_every_parameter(policy: Policy, world: World) -> None:
    """In three steps together: some start behind zeros, as adapters do."""
    model = made(policy, world)
    weights = {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}
    if not weights:
        raise NotApplicable("nothing of it is trained")
    optimizer, reached = torch.optim.Adam(weights.values(), lr=0.01), set()
    row = packed(model, sequences(model, 3, (9, 12, 10, 12)))
    for _ in range(3):
        optimizer.zero_grad()
        logprobs, entropy = model.logprobs_and_entropy(row)
        loss = logprobs.mean() + 0.1 * entropy.mean()
        fail_if(not loss.requires_grad, came="the log-probs have no gradient at all")
        loss.backward()  # type: ignore[no-untyped-call]
        for name, weight in weights.items():
            if weight.grad is not None and bool(weight.grad.any()):
                reached.add(name)
                fail_if(not bool(weight.grad.isfinite().all()), came=f"the gradient of {name} is not finite")
        optimizer.step()
    missed = [name for name in weights if name not in reached]
    shown = ", ".join(missed[:3]) + (", …" if len(missed) > 3 else "")
    fail_if(bool(missed), came=f"{len(missed)} of {len(weights)} get none: {shown}")


@check(
    "frozen() starts as the policy, under adapters as the model without them",
    why="the KL is measured from there: it is 0 at the start, and large where a policy forgets",
    cure="leave frozen() to LanguageModel, or copy the whole model as it is at the call",
)
def the_reference_starts_as_the_policy(policy: Policy, world: World) -> None:
    """Also of a policy that was trained already."""
    model = made(policy, world)
    adapted = hasattr(model.model, "disable_adapter")
    if not adapted:
        train(model)
    row = packed(model, sequences(model))
    reference = model.frozen()
    with torch.no_grad():
        found = reference.logprobs(row)
        expected = _without_adapter(model.model, lambda: model.logprobs(row))
        again = _without_adapter(model.model, lambda: model.logprobs(row))
    if told := unlike(row.split(expected), row.split(found), allowed(model.model)):
        kinds = [type(one).__name__ for one in (model, reference)]
        lost = "" if kinds[0] == kinds[1] or adapted else f"; the policy is a {kinds[0]}, its reference a {kinds[1]}"
        fail(came=f"{told}, first of the policy, then of its reference{lost}")
    fail_if(gap(expected, again) > allowed(model.model), came="the policy has other log-probs after frozen()")


@check(
    "frozen() stays as it is when the policy is trained, and cannot be trained itself",
    why="a reference that moves along measures no KL: nothing holds the policy back, and the curves look fine",
    cure="copy.deepcopy the model, requires_grad_(False), eval(); under adapters compute it without them and no_grad",
)
def the_reference_stays(policy: Policy, world: World) -> None:
    """After three steps, and with the policy in training mode."""
    model = made(policy, world)
    row, trained = packed(model, sequences(model)), _trained(model.model)
    reference = model.frozen()
    if lost := sorted(trained - _trained(model.model)):
        fail(came=f"after frozen() {lost[0]} of the policy itself does not require grad any more")
    own = {id(weight) for weight in model.model.parameters()}
    loose = [n for n, w in reference.model.named_parameters() if w.requires_grad and id(w) not in own]
    fail_if(bool(loose), came=f"{loose[0] if loose else ''} of the reference requires grad")
    before = reference.logprobs(row)
    fail_if(before.requires_grad, came="its log-probs have a gradient")
    with torch.no_grad():
        policy_before = model.logprobs(row)
    train(model)
    model.model.train()
    with torch.no_grad():
        after = reference.logprobs(row)
    fail_if(not model.model.training, came="asking the reference left the policy in eval mode")
    model.model.eval()
    with torch.no_grad():
        moved = gap(model.logprobs(row), policy_before)
    if moved <= 10 * allowed(model.model):
        raise NotApplicable("three steps do not change the policy enough to tell")
    fail_if(
        gap(before, after) > allowed(model.model),
        came=f"its log-probs changed by up to {gap(before, after):.4f} while the policy's changed by {moved:.4f}",
    )


def _trained(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def _without_adapter(model: nn.Module, compute: Any) -> Any:
    inner: Any = model
    if not hasattr(inner, "disable_adapter"):
        return compute()
    with inner.disable_adapter():
        return compute()
