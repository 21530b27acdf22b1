"""Algorithms with one mistake each in their shape or their gradients, and the checks that have to find it."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.contracts.algorithm import Loss
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.run import Run

from .mistakes import register
from .right_algorithm import ActorCritic, Bare, Plain

MISTAKES: dict[type, dict[str, tuple[str, ...]]] = {}
"""Wrong plugin → the checks that fail, each with words of its message; all others pass."""

EVERYWHERE: dict[type, dict[str, tuple[str, ...]]] = {}
"""The same of plugins that cannot be run at all, so that others fail too."""


def all_words(checks: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: words if isinstance(words, tuple) else (words,) for name, words in checks.items()}


def fails(**checks: Any) -> Any:
    return register(MISTAKES, all_words(checks))


def breaks(**checks: Any) -> Any:
    return register(EVERYWHERE, all_words(checks))


# What setup() gives, and how long it takes


@breaks(sets_up_what_it_trains=("LanguageModel", ".model"))
class GivesTheWrapper(Bare):
    """Returns the LanguageModel, which is no module."""

    def setup(self, run: Run) -> Any:
        super().setup(run)
        return self.policy


@breaks(sets_up_what_it_trains="none of the module's")
class TrainsNothing(Bare):
    """Returns a frozen model."""

    def setup(self, run: Run) -> nn.Module:
        return super().setup(run).requires_grad_(False)


@breaks(sets_up_what_it_trains=("SGD", "AdamW"))
class OtherOptimizer(Bare):
    """Has a torch optimiser in the place of its configuration."""

    def setup(self, run: Run) -> nn.Module:
        module = super().setup(run)
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return module


@breaks(says_how_long_it_takes=("method", "@property"))
class ForgotProperty(Bare):
    """total_steps is a method."""

    def total_steps(self) -> int:
        return self.steps


@fails(says_how_long_it_takes="20.0")
class FractionOfSteps(Bare):
    """Divides without rounding."""

    @property
    def total_steps(self) -> float:
        return self.steps / 1


@fails(says_how_long_it_takes="is never trained on")
class RoundedToNoStep(Bare):
    """Counts epochs of prompts where steps are meant, rounded down."""

    @property
    def total_steps(self) -> int:
        return self.steps // 512


@fails(says_how_long_it_takes=r"'20 steps\nof 8 prompts'")
class TwoLines(Bare):
    """arithmetic() has a line break."""

    def arithmetic(self) -> str:
        return f"{self.steps} steps\nof {self.prompts} prompts"


@breaks(gives_minibatches_of_microbatches=("Microbatch", "a list of microbatches"))
class FlatMinibatches(Plain):
    """Gives microbatches where lists of them are expected."""

    def minibatches(self, batch: Any) -> Iterable[Any]:
        return (part for parts in super().minibatches(batch) for part in parts)


@breaks(gives_minibatches_of_microbatches="not one microbatch")
class UsedUp(Plain):
    """Hands out a generator that it has looked into already."""

    def minibatches(self, batch: Any) -> Iterable[list[Any]]:
        found = super().minibatches(batch)
        assert all(found)
        return found


# The loss and the metrics


@breaks(gives_a_finite_loss=("gave a tensor", "return a Loss"))
class BareTensor(Plain):
    """Returns the number without a Loss around it."""

    def loss(self, part: Microbatch) -> Any:
        return super().loss(part).value


@breaks(gives_a_finite_loss="shape [")
class PerToken(Plain):
    """Forgets to add up."""

    def loss(self, part: Microbatch) -> Loss:
        return Loss(-(self.logprobs(part.experience) * part.experience.advantages))


@breaks(gives_a_finite_loss=("nan", "guard divisions"))
class DividesByNothing(Plain):
    """Divides by a spread that is 0."""

    def loss(self, part: Microbatch) -> Loss:
        loss = super().loss(part)
        return replace(loss, value=loss.value / torch.tensor(0.0) * 0)


@breaks(gives_a_finite_loss=("has no gradient", "no_grad"))
class WithoutGraph(Plain):
    """Computes log-probs of the policy under no_grad, as those of the reference."""

    def logprobs(self, old: Experience) -> Tensor:
        with torch.no_grad():
            return super().logprobs(old)


@fails(gives_plain_metrics=("loss still holds the graph", "detach"))
class HoldsTheGraph(Plain):
    """Logs the loss without detaching it."""

    def loss(self, part: Microbatch) -> Loss:
        loss = super().loss(part)
        return replace(loss, metrics={"loss": loss.value * part.sequences / loss.weight})


@fails(gives_plain_metrics="metrics(batch): reward is a tensor of shape []")
class LogsTensors(Plain):
    """What JSON cannot write."""

    def metrics(self, batch: Any) -> dict[str, Any]:
        return {"reward": batch[1].totals.mean()}


@fails(gives_plain_metrics="spread is nan")
class LogsNaN(Plain):
    """The spread of one number."""

    def metrics(self, batch: Any) -> dict[str, float]:
        return {"spread": float(batch[1].totals[:1].std())}


@fails(gives_plain_metrics="'step'")
class LogsTheStep(Plain):
    """A name that each row of metrics.jsonl has already: a resumed run would find no row."""

    def metrics(self, batch: Any) -> dict[str, float]:
        return {"step": 3.0}


@fails(gives_plain_metrics="Loss.weight is 0 of every")
class WeighsNothing(Bare):
    """Metrics that all read 0."""

    def loss(self, old: Experience) -> Loss:
        return replace(super().loss(old), weight=0.0)


@fails(gives_plain_metrics="Loss.weight is a tensor")
class WeighsByTensor(Plain):
    """A weight that makes tensors of all means, which JSON cannot write."""

    def loss(self, part: Microbatch) -> Loss:
        return replace(super().loss(part), weight=part.experience.mask.sum())


@fails(evaluates_to_plain_numbers="reward is a tensor")
class EvaluatesToTensors(Plain):
    """What JSON cannot write, at the end of the training."""

    def evaluate(self, step: int) -> dict[str, Any]:
        return {"reward": torch.tensor(super().evaluate(step)["reward"])}


@fails(evaluates_to_plain_numbers=r"'reward\n")
class LongHeadline(Plain):
    """Two lines."""

    def headline(self, metrics: dict[str, float]) -> str:
        return f"reward\n{metrics['reward']}"


@fails(evaluates_to_plain_numbers="KeyError")
class HeadlineOfWhatIsNotThere(Plain):
    """Reads a metric that it does not measure."""

    def headline(self, metrics: dict[str, float]) -> str:
        return f"accuracy {metrics['accuracy']}"


# The update


@fails(leaves_the_update_to_the_trainer="loss() left gradients")
class GoesBackwardItself(Plain):
    """Calls backward in loss(): the trainer adds the same gradient again."""

    def loss(self, part: Microbatch) -> Loss:
        loss = super().loss(part)
        loss.value.backward(retain_graph=True)
        return loss


@fails(leaves_the_update_to_the_trainer=("collect() changed", "optimiser of your own"))
class DecaysItself(Plain):
    """Weight decay by hand, in collect()."""

    def collect(self, step: int) -> Any:
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter *= 0.999
        return super().collect(step)


@fails(leaves_the_update_to_the_trainer=("when it was computed again", "in place"))
class ShrinksInPlace(Plain):
    """Changes the batch's advantages: the second epoch has others."""

    def loss(self, part: Microbatch) -> Loss:
        part.experience.advantages.mul_(0.5)
        return super().loss(part)


# Where gradients go


@fails(gradient_reaches_every_parameter=("1 of ", "spare.weight"))
class SparePart(Plain):
    """A layer that no loss reads."""

    def setup(self, run: Run) -> nn.Module:
        return nn.ModuleDict({"policy": super().setup(run), "spare": nn.Linear(4, 4, bias=False)})


@fails(gradient_reaches_every_parameter=("reference.", "requires_grad_(False)"))
class TrainableReference(Plain):
    """A copy of the policy among what is trained, never asked with a gradient."""

    def setup(self, run: Run) -> nn.Module:
        policy = super().setup(run)
        return nn.ModuleDict({"policy": policy, "reference": deepcopy(policy)})


@fails(gradient_reaches_every_parameter=("critic.model.model", "detach()"))
class CriticBehindDetach(ActorCritic):
    """Detaches the values before it compares them."""

    def loss(self, part: Microbatch) -> Loss:
        critic = self.critic
        self.critic = lambda packed: critic(packed).detach()
        try:
            return super().loss(part)
        finally:
            self.critic = critic


@fails(trains_nothing_beside_its_module=("outside the module", "nn.ModuleDict"))
class ForgottenCritic(ActorCritic):
    """Returns the policy alone: the critic is never trained."""

    def setup(self, run: Run) -> nn.Module:
        module = super().setup(run)
        return module["actor"]


@fails(trains_nothing_beside_its_module=("outside the module", "frozen()"))
class ReferenceWithGradient(Plain):
    """A KL to a copy that is neither frozen nor asked under no_grad."""

    def setup(self, run: Run) -> nn.Module:
        module = super().setup(run)
        self.reference = replace(self.policy, model=deepcopy(module))
        return module

    def loss(self, part: Microbatch) -> Loss:
        loss, old = super().loss(part), part.experience
        gap = self.reference.logprobs(old.packed) - self.policy.logprobs(old.packed)
        return replace(loss, value=loss.value + 0.1 * ((gap.exp() - gap - 1) * old.mask).sum() / part.sequences)


# Microbatches


@fails(gradients_add_up_over_microbatches=("times that in 1", "divide by the whole minibatch's"))
class MeanOfThePiece(Plain):
    """Divides by the microbatch's own number of responses."""

    def loss(self, part: Microbatch) -> Loss:
        own = replace(part, sequences=len(part.experience.scores))
        return super().loss(own)


@fails(gradients_add_up_over_microbatches="times that in 1")
class WhitensThePiece(Plain):
    """Takes the mean of the advantages from the microbatch."""

    def loss(self, part: Microbatch) -> Loss:
        old = part.experience
        mean = old.advantages[old.mask].mean() if bool(old.mask.any()) else 0.0
        return super().loss(replace(part, experience=replace(old, advantages=old.advantages - mean)))


@fails(metrics_average_over_microbatches=("loss is", "Loss.weight"))
class SharesForMeans(Plain):
    """Logs a share of the minibatch's loss, which averages to less the more pieces there are."""

    def loss(self, part: Microbatch) -> Loss:
        loss = super().loss(part)
        return replace(loss, metrics={"loss": loss.value.detach()})


@fails(metrics_average_over_microbatches="tokens is")
class SumsForMeans(Plain):
    """Logs a count."""

    def loss(self, part: Microbatch) -> Loss:
        loss = super().loss(part)
        return replace(loss, metrics={"tokens": loss.weight})
