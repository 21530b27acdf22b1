"""What evaluators are shown: answers of two models to the same prompts, a policy, a scorer.

All are of one language, the small world's words, as in a run: samples are tokens of the policy's own tokenizer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.data import Message, Prompt
from ...contracts.evaluator import Subject
from ...contracts.reward import Samples
from ...language_model import LanguageModel
from ...run import Run
from ..world import SmallPolicy, World, language_model, word_tokenizer, written

ANSWERS = ("right", "right right", "left", "other right", "left left other", "right other left right", "other", "right")
BEFORE = ("left", "right", "left left", "other", "left other other", "right left", "other other right", "left")
LATER = ("right other", "left", "right right right", "right", "other", "left right", "right left", "other other")


@dataclass
class Wording:
    """A reward that reads the text, as a reward model does: for the word "right", against length."""

    rlhf_api: ClassVar[int] = 1
    worth: float = 1.0

    def setup(self, run: Run) -> None:
        """Nothing to load."""

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32."""
        words = [text.split() for text in samples.responses]
        return torch.tensor([self.worth * text.count("right") - 0.1 * len(text) for text in words])


def alone() -> SmallPolicy:
    """The policy of the run, whose words all subjects speak."""
    return SmallPolicy()


def none() -> Subject:
    """What a stage without anything has."""
    return Subject()


def full(world: World) -> Subject:
    """Everything; made anew each time."""
    return Subject(Wording(), answered(ANSWERS), answered(BEFORE), _policy(world))


def other(world: World) -> Subject:
    """The same prompts, and another policy's answers; the start model is the same."""
    return Subject(Wording(worth=-0.5), answered(LATER), answered(BEFORE), _policy(world, seed=5))


def parts(world: World) -> Iterator[tuple[str, Subject]]:
    """What stages have: each part alone, and what belongs together."""
    everything = full(world)
    for names in (
        ("scorer",), ("samples",), ("baseline",), ("policy",), ("samples", "baseline"), ("samples", "policy"),
        ("samples", "baseline", "policy"),
    ):  # fmt: skip
        yield " and ".join(names) + " alone", Subject(**{name: getattr(everything, name) for name in names})


def few(world: World) -> Iterator[tuple[str, Subject]]:
    """One answer, one that is empty, nothing but empty ones."""
    for name, now, before in (
        ("one answer", ANSWERS[:1], BEFORE[:1]),
        ("one answer, which is empty", ("",), ("",)),
        ("answers that are all empty", ("",) * len(ANSWERS), ("",) * len(ANSWERS)),
    ):
        yield name, Subject(Wording(), answered(now), answered(before), _policy(world))


def dropping_out(world: World) -> Subject:
    """With a policy that drops out half of each token's embedding in training."""
    subject = full(world)
    assert subject.policy is not None
    embedding: Any = subject.policy.model.get_input_embeddings()  # type: ignore[operator]

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return F.dropout(output, 0.5, module.training)

    embedding.register_forward_hook(drop)
    return subject


def answered(texts: Sequence[str]) -> Samples:
    """Answers to the same prompts, plain ones and chats; lists, as rollouts give them."""
    return written([(_prompt(number), text) for number, text in enumerate(texts)], word_tokenizer())


def _prompt(number: int) -> Prompt:
    text = " ".join(["ask"] * (1 + number % 3))
    return Prompt(messages=(Message("user", text),)) if number % 2 else Prompt(text=text)


def _policy(world: World, seed: int = 1) -> LanguageModel:
    model = language_model(word_tokenizer(), seed)
    model.model.to(world.device).eval()
    return model


@dataclass(frozen=True)
class Traits:
    """What an observer has to leave as it is, of a policy."""

    named: dict[str, Any]

    @staticmethod
    def of(policy: LanguageModel) -> "Traits":
        """As it is now."""
        named: dict[str, Any] = {}
        for name, parameter in policy.model.named_parameters():
            named[f"the weights of {name}"] = parameter.detach().clone()
            named[f"the gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
            named[f"requires_grad of {name}"] = parameter.requires_grad
        for name, module in policy.model.named_modules():
            named[f"the mode (training) of {name or 'the model'}"] = module.training
        for name in ("padding_side", "truncation_side", "pad_token_id", "eos_token_id", "chat_template"):
            named[f"{name} of the tokenizer"] = getattr(policy.tokenizer, name, None)
        return Traits(named | {"the size of the tokenizer": len(policy.tokenizer)})

    def changed(self, now: "Traits") -> str:
        """What is not as it was, and how much more of that."""
        differ = [name for name, value in self.named.items() if not _equal(value, now.named.get(name))]
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        return f"{differ[0]}{more}" if differ else ""


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
