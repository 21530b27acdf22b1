"""What checks of algorithms share: a stage that was set up, its batches, the gradients of a minibatch, what it made.

V vocabulary, H hidden size.
"""

import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.algorithm import Loss
from ...contracts.data import Data, Demonstration, Prompt, Ranking, Split
from ...language_model import LanguageModel
from ...optimizer import AdamW
from ...run import Run
from ...scalar_model import ScalarModel
from ...settings import Trainer as Every
from ...trainer import Averages, Trainer
from ..check import NotApplicable, fail, fail_if
from ..world import ASK, END, LEFT, OTHER, PAD, RIGHT, USER, Arms, SmallData, SmallPolicy, World, ranked

WORTH = {END: -0.5, PAD: 0.1, USER: 0.3, ASK: 0.5, LEFT: -1.0, RIGHT: 1.0, OTHER: 0.7}
"""What responses are worth by their first token, so that hardly two of a group are alike."""


@dataclass
class Words(SmallData):
    """Prompts of which no two are alike; people answer ``good``, or ``held_out`` to the few that are held out."""

    good: str = "right"
    held_out: str = "right"

    def text(self, split: Split) -> Sequence[str]:
        """Questions with their answers."""
        return [f"{row.prompt.text} {row.response}" for row in self.demonstrations(split)]

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Numbers written with the words "ask" and "other"; held-out ones begin with "ask ask", and none else."""
        numbers = range(self.size if split == "train" else self.size // 8)
        bits = (f"{'' if split == 'train' else '00'}{number:b}" for number in numbers)
        return [Prompt(text=" ".join(("ask", "other")[int(bit)] for bit in row)) for row in bits]

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """The answers people give."""
        best = self.good if split == "train" else self.held_out
        return [Demonstration(prompt, best) for prompt in self.prompts(split)]

    def rankings(self, split: Split) -> Sequence[Ranking]:
        """The better word first, and every third time "other" between them."""
        best = self.good if split == "train" else self.held_out
        worst = {"left": "right", "right": "left"}[best]
        pair, three = (worst, best), (worst, "other", best)
        return [ranked(prompt, three if place % 3 == 0 else pair) for place, prompt in enumerate(self.prompts(split))]


@dataclass
class Watched(SmallPolicy):
    """The small model; what it has made is remembered."""

    made: list[LanguageModel | ScalarModel] = field(default_factory=list)

    def language_model(self, data: Data) -> LanguageModel:
        """A policy."""
        model = deepcopy(_language_model())
        self.made.append(model)
        return model

    def scalar_model(self, path: str | None = None) -> ScalarModel:
        """A reward model or a critic."""
        model = deepcopy(_scalar_model()) if path is None else super().scalar_model(path)
        self.made.append(model)
        return model


@cache
def _language_model() -> LanguageModel:
    return SmallPolicy().language_model(SmallData())  # a copy of it takes a tenth of the time


@cache
def _scalar_model() -> ScalarModel:
    return SmallPolicy().scalar_model()


class Quiet(Trainer):
    """The trainer; rows of metrics are kept in memory, to the bit, and no checkpoint is written unasked."""

    def __init__(self, run: Run, algorithm: Any) -> None:
        """No row written yet."""
        self.rows: list[tuple[int, str, dict[str, str]]] = []
        super().__init__(run, algorithm)
        self.total = int(self.total)  # another check says where it is no whole number

    def save(self) -> None:
        """Where checkpoints were asked for; the last one is of use to nobody here."""
        if self.every.checkpoint_every:
            super().save()

    def write(self, values: dict[str, float], phase: str) -> None:
        """One row."""
        self.rows.append((self.step, phase, {name: _exact(value) for name, value in values.items()}))


def _exact(value: Any) -> str:
    try:
        return float(value).hex()
    except (TypeError, ValueError):
        return repr(value)  # another check says that this is no number


@dataclass
class Gradients:
    """What a minibatch's backward passes left behind.

    Attributes:
        loss: the sum of the microbatches' losses.
        of: gradients by parameter; 0 of those that none reached.
        metrics: averages over the microbatches.
        pieces: how many microbatches there were.
    """

    loss: float
    of: dict[str, Tensor]
    metrics: dict[str, float]
    pieces: int

    @property
    def largest(self) -> float:
        """The largest entry; NaN where there is one."""
        return float(torch.stack([gradient.abs().max() for gradient in self.of.values()]).max())

    def refuse_infinite(self) -> None:
        """Fail where the loss or a gradient is not finite."""
        fail_if(not isfinite(self.loss), came=f"the loss is {self.loss}")
        for name, gradient in self.of.items():
            fail_if(not bool(gradient.isfinite().all()), came=f"the gradient of {name} is not finite")

    def flat(self) -> Tensor:
        """All of them in one row, in double precision."""
        return torch.cat([gradient.flatten().double() for gradient in self.of.values()])


class Stage:
    """A copy of a plugin in a run of its own."""

    def __init__(
        self, world: World, plugin: Any, *, every: Every | None = None, checkpoint: Path | None = None, **chosen: Any
    ) -> None:
        """Set a copy of the plugin up.

        Args:
            world: where.
            plugin: what is copied.
            every: how often to log, evaluate and save.
            checkpoint: what a stopped run left behind; None: the run is new.
            chosen: as ``World.run`` has them; data, reward and policy are those of this file unless given.
        """
        self.policy = chosen.setdefault("policy", Watched())
        chosen.setdefault("data", Words(rows_for(plugin)))
        chosen.setdefault("reward", Arms(WORTH))
        self.run = world.run(trainer=every, **chosen)
        if checkpoint is not None:
            shutil.copytree(checkpoint, self.run.folder / "checkpoints" / checkpoint.name)
            self.run.resume = True
        self.algorithm: Any = deepcopy(plugin)
        self.run.settings.algorithm = self.algorithm
        self.trainer = Quiet(self.run, self.algorithm)
        self.module: nn.Module = self.trainer.module

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def made(self, sort: type) -> Any:
        """The first ``LanguageModel`` or ``ScalarModel`` of the policy plugin that is trained; None: there is none."""
        mine = {id(parameter) for parameter in self.trained.values()}
        for model in self.policy.made:
            module = model.model
            if isinstance(model, sort) and any(id(parameter) in mine for parameter in module.parameters()):
                return model
        return None

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the trained parameters."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def refuse_changes(self, before: dict[str, Tensor], method: str) -> None:
        """Fail where ``method`` has changed parameters since the snapshot ``before``, or left gradients."""
        for name, parameter in self.trained.items():
            fail_if(not torch.equal(parameter, before[name]), came=f"{method} changed parameters, {name} among them")
            fail_if(parameter.grad is not None, came=f"{method} left gradients, in {name} among others")

    def minibatches(self, step: int = 0) -> Iterator[list[Any]]:
        """Of the batch of a step."""
        return iter(self.algorithm.minibatches(self.algorithm.collect(step)))

    def first(self, step: int = 0) -> list[Any]:
        """The first minibatch of a step, as its microbatches."""
        return next((list(found) for found in self.minibatches(step) if len(found)), [])

    def gradients(self, microbatches: Sequence[Any]) -> Gradients:
        """Of a minibatch; parameters stay as they are."""
        averages, total = Averages(), 0.0
        self.module.zero_grad(set_to_none=True)
        for microbatch in microbatches:
            loss: Loss = self.algorithm.loss(microbatch)
            loss.value.backward()  # type: ignore[no-untyped-call]
            averages.add(loss)
            total += float(loss.value)
        found = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.trained.items()
        }
        self.module.zero_grad(set_to_none=True)
        return Gradients(total, found, averages.result(), len(microbatches))

    def update(self, gradients: Gradients) -> None:
        """One optimiser step, without a clip."""
        for name, parameter in self.trained.items():
            parameter.grad = gradients.of[name]
        self.trainer.optimizer.step()
        self.module.zero_grad(set_to_none=True)

    def nudge(self, size: float, seed: int) -> None:
        """Move the trained parameters by noise, always the same."""
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.trained.values():
                parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter.device), alpha=size)


def stage_of(world: World, plugin: Any, **chosen: Any) -> Stage:
    """A stage that trains.

    Raises:
        NotApplicable: it has no steps.
    """
    stage = Stage(world, plugin, **chosen)
    if stage.trainer.total == 0:
        raise NotApplicable("it trains nothing: total_steps is 0")
    return stage


def first_of(stage: Stage, step: int = 0) -> list[Any]:
    """The microbatches of the first minibatch of a step; there has to be one."""
    return stage.first(step) or fail(
        f"collect({step}) and minibatches() of it gave no microbatch at all",
        "at least one minibatch of at least one microbatch from the batch of a step",
        "let minibatches(batch) give a list of microbatches for each optimiser step",
    )


def rows_for(plugin: Any) -> int:
    """How many rows the data have: a few of the plugin's batches."""
    batches = [value for name, value in vars(plugin).items() if "batch" in name and isinstance(value, int)]
    return 8 * max([16, *batches])


def fast(plugin: Any) -> Any:
    """The plugin with an optimiser that gets far in a few steps."""
    quick = deepcopy(plugin)
    quick.optimizer = AdamW(lr=0.01, eps=1e-5, schedule="constant")
    return quick
