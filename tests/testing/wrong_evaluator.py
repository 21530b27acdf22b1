"""Evaluators that are right, and ones with a single fault each."""

import random
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, ClassVar

import torch

from rlhf_core.batch import Packed
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.run import Run
from rlhf_core.text import encode_document


def words(texts: Any) -> float:
    return fmean(len(text.split()) for text in texts)


@dataclass
class Right:
    """How much longer answers are than before."""

    rlhf_api: ClassVar[int] = 1

    def setup(self, run: Run) -> None:
        self.run = run

    def evaluate(self, subject: Subject) -> Any:
        if subject.samples is None or subject.baseline is None or not len(subject.samples):
            return {}
        return {"more_words": words(subject.samples.responses) - words(subject.baseline.responses)}


@dataclass
class Entropy(Right):
    """Right: of the policy, with a sample of documents that the run's generator chooses; a tensor of no dimension."""

    def evaluate(self, subject: Subject) -> Any:
        if subject.policy is None:
            return {}
        chosen = torch.randperm(3, generator=self.run.generator("documents"))
        rows = [encode_document(subject.policy.tokenizer, ("ask right", "ask left", "other")[i]) for i in chosen[:2]]
        with subject.policy.evaluating():
            packed = Packed.of(rows, subject.policy.device)
            return {"entropy/of_text": subject.policy.logprobs_and_entropy(packed)[1].mean()}


@dataclass
class Spread(Right):
    """Right: of a scorer over texts of its own; whole numbers, too."""

    def evaluate(self, subject: Subject) -> Any:
        if subject.scorer is None or subject.samples is None:
            return {}
        scores = subject.scorer.score(subject.samples).tolist()
        spread = {"scores/spread": stdev(scores)} if len(scores) > 1 else {}
        return {"scores/count": len(scores)} | spread


RIGHT = [Right(), Entropy(), Spread()]


@dataclass
class Measures(Right):
    """Samples alone; ``number`` is what it says of them."""

    def evaluate(self, subject: Subject) -> Any:
        return {} if subject.samples is None else self.numbers(subject)

    def numbers(self, subject: Subject) -> Any:
        raise NotImplementedError


@dataclass
class NeverMeasures(Right):
    """Looks for what no subject has."""

    def evaluate(self, subject: Subject) -> Any:
        return {"rating": 1.0} if hasattr(subject, "ratings") else {}


@dataclass
class NeedsSamples(Right):
    """Takes samples to be there."""

    def evaluate(self, subject: Subject) -> Any:
        return {"words": words(subject.samples.responses)}


@dataclass
class NoneOfNothing(Right):
    """Returns None where there is nothing."""

    def evaluate(self, subject: Subject) -> Any:
        return None if subject.samples is None else {"words": words(subject.samples.responses)}


@dataclass
class ZeroOfNothing(Right):
    """Makes a number up."""

    def evaluate(self, subject: Subject) -> Any:
        return {"words": 0.0 if subject.samples is None else words(subject.samples.responses)}


class OneNumber(Measures):
    """A number without a name."""

    def evaluate(self, subject: Subject) -> Any:
        return {} if subject.samples is None else words(subject.samples.responses)


class WholeTensor(Measures):
    """A number for each answer."""

    def numbers(self, subject: Subject) -> Any:
        return {"words": torch.tensor([len(text.split()) for text in subject.samples.responses])}


class Percentage(Measures):
    """A text."""

    def numbers(self, subject: Subject) -> Any:
        return {"share": "50 %"}


class TextNumber(Measures):
    """A number as text."""

    def numbers(self, subject: Subject) -> Any:
        return {"share": "0.5"}


class SpacedName(Measures):
    """A name with a space."""

    def numbers(self, subject: Subject) -> Any:
        return {"mean words": 1.0}


class SlashedName(Measures):
    """A name that begins with a slash."""

    def numbers(self, subject: Subject) -> Any:
        return {"/words": 1.0}


class NumberedName(Measures):
    """A name that is a number."""

    def numbers(self, subject: Subject) -> Any:
        return {4: 1.0}


class Infinite(Measures):
    """Minus infinity for a probability of zero."""

    def numbers(self, subject: Subject) -> Any:
        return {"log_share": float(torch.tensor(0.0).log())}


class DividesByWords(Measures):
    """The words of each answer divide."""

    def numbers(self, subject: Subject) -> Any:
        texts = subject.samples.responses
        return {"word_length": fmean(len(text) / len(text.split()) for text in texts)}


class StandardDeviation(Measures):
    """Of one answer it is NaN."""

    def numbers(self, subject: Subject) -> Any:
        return {"spread": float(torch.tensor([float(len(text)) for text in subject.samples.responses]).std())}


@dataclass
class RunningMean(Measures):
    """Adds up over calls."""

    seen: list[float] = field(default_factory=list)

    def numbers(self, subject: Subject) -> Any:
        self.seen.append(words(subject.samples.responses))
        return {"words": fmean(self.seen)}


class Counts(Measures):
    """Says how often it was called."""

    def numbers(self, subject: Subject) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return {"calls": self.calls}


class DrawsOn(Measures):
    """A generator that is made once, and drawn from in each call."""

    def setup(self, run: Run) -> None:
        self.generator = run.generator("mine")

    def numbers(self, subject: Subject) -> Any:
        return {"noise": float(torch.rand((), generator=self.generator))}


class Remembers(Measures):
    """Keeps the first result."""

    def numbers(self, subject: Subject) -> Any:
        self.kept = getattr(self, "kept", None) or {"words": words(subject.samples.responses)}
        return self.kept


class Bootstrap(Measures):
    """Draws with the global generator."""

    def numbers(self, subject: Subject) -> Any:
        texts = subject.samples.responses
        return {"words": words(random.choices(texts, k=len(texts)))}


class Seeds(Measures):
    """Seeds the global generator."""

    def numbers(self, subject: Subject) -> Any:
        torch.manual_seed(0)
        return {"noise": float(torch.rand(()))}


class SwitchesGradientsOff(Measures):
    """Leaves gradients off."""

    def numbers(self, subject: Subject) -> Any:
        torch.set_grad_enabled(False)
        return {"words": words(subject.samples.responses)}


@dataclass
class OfPolicy(Right):
    """The mean log-prob of a document; ``before`` and ``after`` are done to the policy."""

    def evaluate(self, subject: Subject) -> Any:
        if subject.policy is None:
            return {}
        self.before(subject.policy)
        packed = Packed.of([encode_document(subject.policy.tokenizer, "ask right other")], subject.policy.device)
        loss = -subject.policy.logprobs(packed).mean()
        self.after(subject.policy, loss)
        return {"loss": float(loss)}

    def before(self, policy: Any) -> None:
        policy.model.eval()

    def after(self, policy: Any, loss: Any) -> None:
        pass


class StaysInEval(OfPolicy):
    """Leaves the policy in eval mode."""


class BackToTrain(OfPolicy):
    """Puts the policy into train mode, whatever it was in."""

    def after(self, policy: Any, loss: Any) -> None:
        policy.model.train()


@dataclass
class Restoring(OfPolicy):
    """Puts the mode back; the rest is left."""

    def before(self, policy: Any) -> None:
        self.training = policy.model.training
        policy.model.eval()

    def after(self, policy: Any, loss: Any) -> None:
        policy.model.train(self.training)
        self.leave(policy, loss)

    def leave(self, policy: Any, loss: Any) -> None:
        raise NotImplementedError


class LeavesGradients(Restoring):
    """Calls backward."""

    def leave(self, policy: Any, loss: Any) -> None:
        loss.backward()


class ClearsGradients(Restoring):
    """Clears gradients that are not its own."""

    def leave(self, policy: Any, loss: Any) -> None:
        policy.model.zero_grad()


class Freezes(Restoring):
    """Freezes the policy."""

    def leave(self, policy: Any, loss: Any) -> None:
        policy.model.requires_grad_(False)


class Rounds(Restoring):
    """Rounds the weights."""

    def leave(self, policy: Any, loss: Any) -> None:
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.copy_(parameter.bfloat16())


class PadsLeft(Restoring):
    """Sets the tokenizer's padding."""

    def leave(self, policy: Any, loss: Any) -> None:
        policy.tokenizer.padding_side = "left" if policy.tokenizer.padding_side == "right" else "right"


class Sorts(Measures):
    """Sorts the samples where they are."""

    def numbers(self, subject: Subject) -> Any:
        subject.samples.responses.sort(key=len)
        return {"median": len(subject.samples.responses[len(subject.samples) // 2])}


class CutsIds(Measures):
    """Takes the end token off."""

    def numbers(self, subject: Subject) -> Any:
        ids = [list(row) for row in subject.samples.response_ids]
        for row in subject.samples.response_ids:
            row.append(0)
        return {"tokens": fmean(map(len, ids))} if not any(ids) else {"found": 1.0}


@dataclass
class WithDropout(OfPolicy):
    """Measures the policy in the mode it comes in."""

    def before(self, policy: Any) -> None:
        pass
