"""What is asked of every reward: its scores. Independence, parts and steps, in files of their own, follow.

B responses.
"""

from dataclasses import fields, is_dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from ...contracts.reward import Reward, Samples
from ...errors import UserError
from ...failure import flat
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import World
from . import reward_independence, reward_parts, reward_steps
from .scores import (
    contents,
    crash_of,
    named,
    not_finite,
    ready,
    scores_of,
    short,
    torch_changes,
    trouble_with,
    without_tokens,
)

CHECKS = check = Checks()


@check(
    "score() gives a tensor of shape [B], one number a response",
    why="scores meet log-probs by their place: another shape is refused, or broadcast into B × B numbers",
    cure="return torch.tensor([...]) with one number for each of samples.responses; squeeze(-1), not squeeze()",
)
def gives_one_score_a_response(reward: Reward, world: World) -> None:
    """Of a batch, and of one response alone."""
    ready(reward, world)
    for samples in (world.samples, world.samples.select([0])):
        found: Any = reward.score(samples)
        if not isinstance(found, Tensor):
            fail(f"{type(found).__name__} for {len(samples)} responses")
        wrong = tuple(found.shape) != (len(samples),)
        fail_if(wrong, f"shape {list(found.shape)} for {len(samples)} responses, B = {len(samples)}")


@check(
    "scores are float32",
    why="whole numbers cannot be averaged, half precision rounds differences away, float64 turns the loss into it",
    cure="return torch.tensor(scores, dtype=torch.float32), or scores.float()",
)
def gives_float32(reward: Reward, world: World) -> None:
    """Whatever the model behind it computes in."""
    ready(reward, world)
    found = reward.score(world.samples)
    fail_if(isinstance(found, Tensor) and found.dtype != torch.float32, f"{getattr(found, 'dtype', None)}")


@check(
    "scores are finite",
    why="one NaN or infinity makes the whole batch's advantages NaN, and the policy with them",
    cure="look for a division by a length, the log of 0, or a mean of nothing",
)
def gives_finite_scores(reward: Reward, world: World) -> None:
    """Of plain responses."""
    ready(reward, world)
    wrong = not_finite(scores_of(reward, world.samples), world.samples)
    fail_if(bool(wrong), wrong)


@check(
    "scores are on the CPU or on the run's device",
    why="elsewhere they cannot meet the rest of the batch",
    cure="put what scoring needs on run.device in setup(), and return scores from there or from the CPU",
)
def is_on_a_device_of_the_run(reward: Reward, world: World) -> None:
    """The device of ``run.device``."""
    ready(reward, world)
    found = reward.score(world.samples)
    device = found.device.type if isinstance(found, Tensor) else "cpu"
    fail_if(device not in ("cpu", world.device.type), f"scores on {device}, in a run on {world.device.type}")


@check(
    "scores carry no autograd graph",
    why="the graph keeps every activation of the model in memory until the scores are gone",
    cure="compute under torch.no_grad(), or return scores.detach()",
)
def carries_no_gradient(reward: Reward, world: World) -> None:
    """In a caller that records gradients."""
    ready(reward, world)
    with torch.enable_grad():
        found = reward.score(world.samples)
    fail_if(isinstance(found, Tensor) and found.requires_grad, "scores.requires_grad is True")


@check(
    "scores of responses to chat prompts and to plain ones",
    why="data decides which of the two prompts are: of a chat, text is empty; of plain text, there are no messages",
    cure="read prompt.shown, which is the text of either",
)
def reads_chat_and_plain_prompts(reward: Reward, world: World) -> None:
    """Each kind apart; a reward that can read neither has other faults."""
    ready(reward, world)
    chat = [number for number, prompt in enumerate(world.samples.prompts) if prompt.messages]
    plain = [number for number in range(len(world.samples)) if number not in chat]
    crashes = [crash_of(reward, world.samples.select(places)) for places in (chat, plain)]
    for crash, which, other in zip(crashes, ("chat", "plain"), reversed(crashes), strict=True):
        fail_if(bool(crash) and not other, f"{crash}, of responses to {which} prompts")


@check(
    "finite scores of empty, blank, foreign and very long responses",
    why="a policy says all of these, at the start of training most of all; one crash ends the run",
    cure="decide what no words are worth, say 0; cut what is too long for the model",
)
def survives_odd_responses(reward: Reward, world: World) -> None:
    """Together and, where a plain one can be scored alone, alone."""
    ready(reward, world)
    odd, plain = world.odd_samples, world.samples.select([0])
    alone = [odd.select([number]) for number in range(len(odd))] + [without_tokens(plain)]
    broken = [f"{named(one)}: {trouble}" for one in alone if (trouble := trouble_with(reward, one))]
    if broken and not trouble_with(reward, plain):
        fail("; ".join(broken[:2]))
    beside = Samples.joined([plain, short(odd)])  # padding all to the very long one would take minutes
    if (trouble := trouble_with(reward, beside)) and not trouble_with(reward, world.samples):
        fail(f"{trouble} in a batch of odd responses and a plain one")


@check(
    "no scores of no responses",
    why="a rank or a filter may leave nothing to score",
    cure="return torch.zeros(0) where there are no responses",
)
def survives_an_empty_batch(reward: Reward, world: World) -> None:
    """Shape ``[0]``."""
    ready(reward, world)
    found: Any = reward.score(world.samples.select([]))
    count = found.numel() if isinstance(found, Tensor) else len(found)
    fail_if(count != 0, f"{_shape(found)}, {count} numbers, of no responses")


@check(
    "scores of samples of which only the text is known",
    why="judges of other models' answers and rankings by people have no tokens: prompt_ids, response_ids and stops "
    "are empty there, tokenizer is None",
    cure="read samples.responses where samples.response_ids is empty; raise a UserError where tokens are needed",
)
def reads_text_alone(reward: Reward, world: World) -> None:
    """As ``rank`` and evaluators hand it over."""
    ready(reward, world)
    text = Samples(world.samples.prompts, world.samples.responses)
    try:
        found: Any = reward.score(text)
    except UserError as error:
        raise NotApplicable(f"it says that it needs more: {flat(error)}") from error
    wrong = tuple(getattr(found, "shape", ())) != tuple(getattr(reward.score(world.samples), "shape", ()))
    fail_if(wrong, f"{_shape(found)} for {len(text)} responses without tokens")


@check(
    "samples stay as they are",
    why="the policy is trained on the same lists of tokens afterwards, and other parts of the reward read them",
    cure="copy before changing: [*response, end] in place of response.append(end)",
)
def leaves_samples_unchanged(reward: Reward, world: World) -> None:
    """Texts, tokens, and how the tokenizer is set."""
    ready(reward, world)
    for samples in (world.samples, short(world.odd_samples)):
        before = contents(samples)
        trouble_with(reward, samples)  # which is told by other checks
        changed = [name for name, value in contents(samples).items() if value != before[name]]
        fail_if(bool(changed), f"score() changed samples.{' and samples.'.join(changed)}")


@check(
    "setup() and score() leave the fields as they are",
    why="fields are the configuration that config.yaml records: a copy set up anew would start from other values",
    cure="keep what setup() makes in attributes that are no fields",
)
def keeps_its_configuration(reward: Reward, world: World) -> None:
    """Nor does scoring change them."""
    if not is_dataclass(reward):
        raise NotApplicable("it is no dataclass")
    names = [field.name for field in fields(reward) if field.init]
    before = {name: repr(getattr(reward, name)) for name in names}
    ready(reward, world)
    for act in ("setup()", "score()"):
        for name in names:
            now = repr(getattr(reward, name))
            fail_if(now != before[name], f"{act} changed {name} from {shorten(before[name], 80)} to {shorten(now, 80)}")
        trouble_with(reward, world.samples)


@check(
    "torch's settings stay as they are",
    why="they belong to the whole run: without gradients, say, the policy is not trained any more",
    cure="use with torch.no_grad(): around what scores, and say dtype and device where a tensor is made",
)
def leaves_torch_as_it_was(reward: Reward, world: World) -> None:
    """Gradients, default dtype and device, threads."""
    with torch_changes() as changed:
        ready(reward, world)
        fail_if(bool(changed()), f"setup(): {changed()}")
        reward.score(world.samples)
        fail_if(bool(changed()), f"score(): {changed()}")


def _shape(found: Any) -> str:
    return f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


CHECKS += reward_independence.CHECKS + reward_parts.CHECKS + reward_steps.CHECKS
