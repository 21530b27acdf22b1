"""Algorithms with one mistake in what they sample, how they run, what they learn or what they save."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_core.contracts.algorithm import Loss
from rlhf_core.experience import Experience, Microbatch
from rlhf_core.run import Run

from .right_algorithm import ActorCritic, Bare, Imitation, Padded, Plain
from .wrong_algorithm import fails

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


@fails(resumes_to_the_bit=("cannot be read back", "state_dict()['path'], PosixPath"))
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
