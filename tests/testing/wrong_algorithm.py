"""Algorithms with one mistake each, and the checks that have to find it."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_core.contracts.algorithm import Loss
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.run import Run

from .right_algorithm import ActorCritic, Bare, Imitation, Padded, Plain

MISTAKES: dict[type, dict[str, tuple[str, ...]]] = {}
"""Wrong plugin → the checks that fail, each with words of its message; all others pass."""

EVERYWHERE: dict[type, dict[str, tuple[str, ...]]] = {}
"""The same of plugins that cannot be run at all, so that others fail too."""


def fails(**checks: Any) -> Any:
    def add(cls: type) -> type:
        MISTAKES[cls] = {name: words if isinstance(words, tuple) else (words,) for name, words in checks.items()}
        return cls

    return add


def breaks(**checks: Any) -> Any:
    def add(cls: type) -> type:
        fails(**checks)(cls)
        EVERYWHERE[cls] = MISTAKES.pop(cls)
        return cls

    return add


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


# Samples


@fails(zero_advantage_gives_zero_gradient=("changes with the answers", "advantage"))
class ImitatesToo(Plain):
    """A term that raises whatever was sampled."""

    def loss(self, part: Microbatch) -> Loss:
        loss, old = super().loss(part), part.experience
        return replace(loss, value=loss.value - 0.1 * (self.logprobs(old) * old.mask).sum() / part.sequences)


@fails(zero_advantage_gives_zero_gradient=("the loss is nan", "small number"))
class SpreadOfNothing(Plain):
    """Divides by the spread of advantages, without a small number beside it."""

    def advantages(self, scores: Tensor) -> Tensor:
        found = super().advantages(scores)
        return found / found.std()


@fails(zero_advantage_gives_zero_gradient="changes with the answers")
class KLOfTheWrongKind(Plain):
    """k1 in the loss, whose gradient is that of the log-probs of whatever was sampled."""

    def loss(self, part: Microbatch) -> Loss:
        loss, old = super().loss(part), part.experience
        kl = ((self.logprobs(old) - old.ref_logprobs) * old.mask).sum()
        return replace(loss, value=loss.value + 0.2 * kl / part.sequences)


@fails(zero_advantage_gives_zero_gradient=("score.weight", "detach values"))
class ValuesWithGraph(ActorCritic):
    """Subtracts the critic's values without detaching them: the policy's loss trains the critic."""

    def loss(self, part: Microbatch) -> Loss:
        old, loss = part.experience, super().loss(part)
        values = self.critic(old.packed).roll(1)
        leak = (self.logprobs(old) * (values - values.detach()) * old.mask).sum() / part.tokens
        return replace(loss, value=loss.value + leak)


@fails(trains_on_what_was_chosen_alone=("'ask', only there in prompts", "mask"))
class PromptsToo(Plain):
    """Forgets the mask."""

    def loss(self, part: Microbatch) -> Loss:
        old = part.experience
        everything = replace(old, packed=replace(old.packed, predicted=None, prompts=()))
        logprobs = self.logprobs(everything)
        advantages = old.advantages.new_zeros(len(old.scores)).index_put((old.packed.sequence,), old.advantages)
        value = -(logprobs * advantages[old.packed.sequence]).sum() / part.sequences
        return Loss(value, {}, int(old.mask.sum()))


@fails(
    trains_on_what_was_chosen_alone=("'<pad>', only there in padding", "mask"), gradients_add_up_over_microbatches=()
)
@dataclass
class PaddingToo(Padded):
    """Masks the prompt, but not what fills the row."""

    kl: float = 0.0

    def of_tokens(self, model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        logprobs, mask = super().of_tokens(model, rows)
        for place, row in enumerate(rows):
            mask[place, len(row["prompt"]) + len(row["response"]) - 1 :] = 1
        return logprobs, mask


@fails(trains_on_what_was_chosen_alone=("a tool wrote", "Rollout.chosen"))
class ToolsToo(Padded):
    """Takes the whole response for the policy's."""

    def collect(self, step: int) -> Any:
        return [row | {"chosen": [True] * len(row["response"])} for row in super().collect(step)]


@fails(trains_on_every_chosen_token=("'<end>', the last token",))
class WithoutEnd(Padded):
    """Leaves the end token out."""

    def collect(self, step: int) -> Any:
        return [row | {"chosen": [*row["chosen"][:-1], row["response"][-1:] != [0]]} for row in super().collect(step)]


@fails(trains_at_the_rollouts_temperature=("1 times", "temperature"), starts_at_a_ratio_of_one="first_ratio_max is")
class Cold(Plain):
    """Takes log-probs at a temperature of 1."""

    def logprobs(self, old: Experience) -> Tensor:
        return self.policy.logprobs(old.packed)


@fails(trains_at_the_rollouts_temperature="1 times")
class ColdToo(Bare):
    """The same, without a ratio."""

    def logprobs(self, old: Experience) -> Tensor:
        return self.policy.logprobs(old.packed)


@fails(starts_at_a_ratio_of_one=("first_ratio_max is", "eval() mode"))
class DropsOut(Plain):
    """Leaves the policy in training mode."""

    def setup(self, run: Run) -> nn.Module:
        return super().setup(run).train()


@dataclass
class Drawing(Plain):
    """Draws with a generator that a mistake gives."""

    def collect(self, step: int) -> Any:
        run, numbers = self.run, self.numbers(step)
        self.run = replace(run)
        self.run.generator = lambda *words: numbers
        try:
            return super().collect(step)
        finally:
            self.run = run

    def numbers(self, step: int) -> torch.Generator:
        raise NotImplementedError


@fails(samples_anew_at_each_step=("at steps 0 and 1", 'run.generator("rollout", step)'))
class SameNumbers(Drawing):
    """Seeds anew at each step."""

    def numbers(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.run.seed)


@fails(samples_anew_at_each_step="with seeds 0 and 1")
class SameSeeds(Drawing):
    """Forgets the run's seed."""

    def numbers(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(step)


@fails(samples_anew_at_each_step=("64 of 64 prompts", '"train"'))
class HeldOutPrompts(Bare):
    """Learns from the prompts that are there to measure."""

    def setup(self, run: Run) -> nn.Module:
        module = super().setup(run)
        self.rows = list(run.data.prompts("test"))
        return module

    def collect(self, step: int) -> Any:
        rows, self.rows = self.rows, [self.rows[place % len(self.rows)] for place in range(512)]
        try:
            return super().collect(step)
        finally:
            self.rows = rows


@fails(survives_empty_responses="the loss is nan")
class MeanOfNoTokens(Plain):
    """Divides by a response's length."""

    def loss(self, part: Microbatch) -> Loss:
        old = part.experience
        lengths = old.per_sequence(old.mask.float())
        means = old.per_sequence(self.logprobs(old) * old.mask) / lengths
        value = -(means * old.per_sequence(old.advantages) / lengths).sum() / part.sequences
        return Loss(value, {}, int(old.mask.sum()))


# Runs


@fails(repeats_to_the_bit=("of two runs with one seed", "run.generator"))
class OfTheMoment(Drawing):
    """A generator that nobody seeded."""

    def numbers(self, step: int) -> torch.Generator:
        generator = torch.Generator()
        generator.seed()
        return generator


@fails(repeats_to_the_bit=("kl_coef = ", "on the class"))
class OnTheClass(Plain):
    """A coefficient that the next run inherits."""

    coefs: ClassVar[list[float]] = [0.1]

    def metrics(self, batch: Any) -> dict[str, float]:
        self.coefs.append(self.coefs[-1] * 1.1)
        return super().metrics(batch) | {"kl_coef": self.coefs[-1]}


@fails(resumes_to_the_bit=("after step 2", "state_dict()"))
class ForgetsItsBaseline(Padded):
    """The moving mean is not in state_dict()."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@fails(resumes_to_the_bit=("after step 2", "load_state_dict()"))
class LoadsNothing(Padded):
    """Saves the moving mean and does not take it back."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@fails(resumes_to_the_bit=("loss = ", "after step 2"))
class ForgetsItsPlace(Imitation):
    """Begins with the first rows again."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@fails(resumes_to_the_bit=("cannot be read back", "tensors, numbers, strings"))
class SavesAnObject(Padded):
    """A generator, which weights-only loading refuses."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"path": Path("x")}


@fails(resumes_to_the_bit=("after step 2",))
class FollowingReference(Padded):
    """The reference follows the policy, and a resumed one begins at the start again."""

    def collect(self, step: int) -> Any:
        with torch.no_grad():
            for mine, other in zip(self.reference.parameters(), self.policy.model.parameters(), strict=True):
                mine.lerp_(other, 0.5)
        return super().collect(step)


@fails(evaluation_changes_nothing=("module '' was in training mode", "evaluating()"))
class StaysInEval(Imitation):
    """Forgets to go back to training."""

    def evaluate(self, step: int) -> dict[str, float]:
        self.model.model.eval()
        return {}


@fails(evaluation_changes_nothing=("evaluates after each step has", "generator of its own"))
class SharesNumbers(Drawing):
    """Evaluates with the numbers that training draws next."""

    def numbers(self, step: int) -> torch.Generator:
        return torch.default_generator

    def evaluate(self, step: int) -> dict[str, float]:
        return {"chance": float(torch.rand(()))}


@fails(evaluation_changes_nothing="evaluate() left gradients")
class EvaluatesBackward(Imitation):
    """A held-out loss that goes backward."""

    def evaluate(self, step: int) -> dict[str, float]:
        self.loss(self.rows[:4]).value.backward()
        return {}


@fails(goes_on_through_the_data=("the same gradient", "Order"))
class FirstRows(Imitation):
    """Trains on the first rows at each step."""

    def collect(self, step: int) -> Any:
        return self.rows[: self.batch_size]


# What is learned


@fails(learns_the_better_arm=("wrong way", "sign"))
class Minimises(Plain):
    """The sign of a reward that is to be minimised."""

    def advantages(self, scores: Tensor) -> Tensor:
        return -super().advantages(scores)


@fails(learns_the_better_arm=("did not move",), gradient_reaches_every_parameter="21 of 21 parameters")
class NothingAdded(Bare):
    """Multiplies by what is 0: the advantages' mean."""

    def advantages(self, scores: Tensor) -> Tensor:
        return super().advantages(scores) * 0


@fails(learns_the_better_arm="its own response")
class OfTheNeighbour(Plain):
    """Each response has the score of one to the prompt before."""

    def advantages(self, scores: Tensor) -> Tensor:
        return super().advantages(scores).roll(self.answers)


@fails(learns_the_better_arm='"train"')
@dataclass
class HeldOutRows(Imitation):
    """Trains on what is there to measure."""

    split: str = "test"
    batch_size: int = 8


# What is saved


@fails(saves_what_was_trained=("before training", "as it is at the end"))
class SavesTheStart(Plain):
    """Saves a model that it made anew."""

    def save(self, folder: Path) -> None:
        self.run.policy.language_model(self.run.data).save(folder)


@fails(saves_what_was_trained="a model of scores was saved, but a language model was trained")
class SavesTheCritic(ActorCritic):
    """Saves the wrong one of two models."""

    def save(self, folder: Path) -> None:
        self.critic.save(folder)


@fails(saves_a_plain_checkpoint=("missing: tokenizer.json", "save_pretrained"))
class WithoutTokenizer(Plain):
    """Saves the model alone."""

    def save(self, folder: Path) -> None:
        self.policy.model.save_pretrained(folder)


@fails(saves_a_plain_checkpoint=("policy.pt", "config.json"))
class SavesItsOwnWay(Plain):
    """A file that only it can read."""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        torch.save(self.policy.model.state_dict(), folder / "policy.pt")
