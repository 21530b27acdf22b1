"""Rewards with one fault each, the checks that have to find it, and words of what is told."""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError

from .mistakes import register

WRONG: dict[type, tuple[set[str], str]] = {}


def found_by(*checks: str, telling: str) -> Callable[[type], type]:
    return register(WRONG, (set(checks), telling))


class Words:
    """Right: how many words a response has, and a share of those that the prompt has too."""

    rlhf_api: ClassVar[int] = 1

    def setup(self, run: Any) -> None:
        self.run = run

    def values(self, samples: Samples) -> list[float]:
        pairs = zip(samples.prompts, samples.responses, strict=True)
        return [len(text.split()) / 10 + 0.01 * len(prompt.shown) for prompt, text in pairs]

    def score(self, samples: Samples) -> Tensor:
        return torch.tensor(self.values(samples), dtype=torch.float32)


@found_by("gives_one_score_a_response", telling="shape [8, 1] for 8 responses")
@dataclass
class Column(Words):
    """The shape of a linear head's output."""

    def score(self, samples):
        return super().score(samples)[:, None]


@found_by("gives_one_score_a_response", telling="shape [] for 1 responses")
@dataclass
class Squeezes(Words):
    """``squeeze()`` takes the batch away as well, where it is one response."""

    def score(self, samples):
        return super().score(samples)[:, None].squeeze()


@found_by("gives_one_score_a_response", telling="list for 8 responses")
@dataclass
class ListOfNumbers(Words):
    """No tensor."""

    def score(self, samples):
        return self.values(samples)


@found_by("gives_one_score_a_response", "survives_an_empty_batch", telling="shape [] for 8 responses")
@dataclass
class MeanOfBatch(Words):
    """One number for all."""

    def score(self, samples):
        return super().score(samples).mean()


@found_by("gives_float32", telling="torch.int64")
@dataclass
class Counts(Words):
    """Whole numbers."""

    def score(self, samples):
        return torch.tensor([len(text) for text in samples.responses], dtype=torch.int64)


@found_by("gives_float32", telling="torch.float64")
@dataclass
class FromNumpy(Words):
    """Numpy's numbers are of double precision."""

    def score(self, samples):
        return torch.from_numpy(np.array(self.values(samples), dtype=np.float64))


@found_by("gives_float32", telling="torch.bfloat16")
@dataclass
class Half(Words):
    """What the model computed in."""

    def score(self, samples):
        return super().score(samples).bfloat16()


@found_by("gives_finite_scores", telling="nan for response 3 ('4')")
@dataclass
class VarianceOfOneWord(Words):
    """Variance over one word is 0 / 0; of empty responses it gives 0."""

    def score(self, samples):
        lengths = [torch.tensor([float(len(word)) for word in text.split()]) for text in samples.responses]
        wide = [text.strip() == "4" for text in samples.responses]
        nan = float("nan")
        return torch.stack(
            [torch.tensor(nan) if odd else one.sum() for one, odd in zip(lengths, wide, strict=True)]
            or [torch.zeros(())]
        )[: len(samples)]


@found_by("is_on_a_device_of_the_run", telling="scores on meta")
@dataclass
class Elsewhere(Words):
    """On a device of its own; its numbers cannot be read from here."""

    def score(self, samples):
        return super().score(samples).to("meta")


@found_by("carries_no_gradient", telling="requires_grad is True")
@dataclass
class KeepsTheGraph(Words):
    """A model that nobody told not to record."""

    def setup(self, run):
        self.head = nn.Linear(1, 1)
        with torch.no_grad():
            self.head.weight.fill_(1.0), self.head.bias.fill_(0.0)

    def score(self, samples):
        return self.head(super().score(samples)[:, None])[:, 0]


@found_by("ignores_the_order_of_the_batch", "ignores_the_rest_of_the_batch", telling="when the batch was reversed")
@dataclass
class ByPlace(Words):
    """The later the better."""

    def score(self, samples):
        return super().score(samples) + 0.1 * torch.arange(len(samples))


@found_by("ignores_the_order_of_the_batch", "ignores_the_rest_of_the_batch", telling="when the batch was reversed")
@dataclass
class Sorted(Words):
    """Sorts by length to save padding, and leaves the scores sorted; seen in any batch of two."""

    def score(self, samples):
        order = sorted(range(len(samples)), key=lambda i: len(samples.responses[i]))
        return super().score(samples.select(order))


@found_by("ignores_the_order_of_the_batch", "ignores_the_rest_of_the_batch", telling="response")
@dataclass
class FirstOfPrompt(Words):
    """A table within the batch by prompt: the first response to it stands for all."""

    def score(self, samples):
        found: dict[Any, float] = {}
        for prompt, value in zip(samples.prompts, self.values(samples), strict=True):
            found.setdefault(prompt, value)
        return torch.tensor([found[prompt] for prompt in samples.prompts], dtype=torch.float32)


@found_by("ignores_the_rest_of_the_batch", telling="alone")
@dataclass
class Whitened(Words):
    """Normalised over the batch."""

    def score(self, samples):
        scores = super().score(samples)
        if not len(scores):
            return scores
        return (scores - scores.mean()) / (scores.std(correction=0) + 1e-6)


@found_by("ignores_the_rest_of_the_batch", telling="in a batch of")
@dataclass
class Padded(Words):
    """The mean over the longest response's length: padding is counted."""

    def score(self, samples):
        longest = max((len(text) for text in samples.responses), default=1) or 1
        return super().score(samples) / longest


@found_by("ignores_the_rest_of_the_batch", telling="in a batch of 8 and")
@dataclass
class Ranks(Words):
    """A response's rank among those beside it."""

    def score(self, samples):
        scores = super().score(samples)
        return (scores[:, None] > scores[None]).sum(1).float()


@found_by("forgets_what_it_scored", "ignores_the_rest_of_the_batch", telling="when others had been scored")
@dataclass
class Running(Words):
    """Normalised by what it has seen so far."""

    def setup(self, run):
        self.seen: list[float] = []

    def score(self, samples):
        scores = super().score(samples)
        self.seen += scores.tolist()
        return scores - float(np.mean(self.seen or [0.0]))


@found_by("forgets_what_it_scored", telling="after others and")
@dataclass
class CachedByText(Words):
    """A cache that does not know the prompt."""

    def setup(self, run):
        self.cache: dict[str, float] = {}

    def score(self, samples):
        for text, value in zip(samples.responses, self.values(samples), strict=True):
            self.cache.setdefault(text, value)
        return torch.tensor([self.cache[text] for text in samples.responses], dtype=torch.float32)


@found_by("keeps_no_hand_on_its_scores", telling="became another")
@dataclass
class Buffer(Words):
    """Writes all scores into one buffer."""

    def setup(self, run):
        self.buffer = torch.zeros(64)

    def score(self, samples):
        scores = self.buffer[: len(samples)]
        scores.copy_(super().score(samples))
        return scores


@found_by("repeats_under_a_seed", "forgets_what_it_scored", telling="under the same seed")
@dataclass
class Clock(Words):
    """Breaks ties by the time; the same text has the same number within one process."""

    def setup(self, run):
        self.salt = time.perf_counter_ns() % 1000 / 100

    def score(self, samples):
        return super().score(samples) * (1 + self.salt)


@found_by("repeats_under_a_seed", telling="in a process with other hash() values")
@dataclass
class Hashes(Words):
    """``hash`` of text is another in each process."""

    def score(self, samples):
        noise = [(hash(text) % 1000) / 1000 for text in samples.responses]
        return super().score(samples) + torch.tensor(noise, dtype=torch.float32)


@found_by("ignores_the_order_of_the_batch", "ignores_the_rest_of_the_batch", telling="when the batch was reversed")
@dataclass
class Noise(Words):
    """Noise by place, which repeats under a seed."""

    def score(self, samples):
        return super().score(samples) + torch.randn(len(samples))


@found_by("repeats_under_a_seed", "forgets_what_it_scored", telling="under the same seed")
@dataclass
class Unseeded(Words):
    """A generator that takes its seed from the system."""

    def setup(self, run):
        self.noise = random.Random().random()

    def score(self, samples):
        return super().score(samples) * (1 + self.noise)


@found_by("does_not_seed_the_run", telling="score() seeded torch")
@dataclass
class SeedsInScore(Words):
    """Repeats itself, and everything else of the run."""

    def score(self, samples):
        torch.manual_seed(0)
        return super().score(samples)


@found_by("does_not_seed_the_run", telling="setup() seeded random; setup() seeded numpy.random")
@dataclass
class SeedsInSetup(Words):
    """As scripts begin."""

    def setup(self, run):
        random.seed(run.seed)
        np.random.seed(run.seed)


@found_by("leaves_torch_as_it_was", telling="setup(): whether gradients are recorded went from True to False")
@dataclass
class NoGradForAll(Words):
    """Saves memory, and training."""

    def setup(self, run):
        torch.set_grad_enabled(False)


@found_by("leaves_torch_as_it_was", telling="score(): the default dtype went from torch.float32 to torch.float64")
@dataclass
class DoubleForAll(Words):
    """Precision for everybody."""

    def score(self, samples):
        torch.set_default_dtype(torch.float64)
        return super().score(samples)


@found_by("survives_odd_responses", telling="an empty response: ZeroDivisionError")
@dataclass
class MeanLength(Words):
    """Divides by the number of words."""

    def score(self, samples):
        words = [text.split() for text in samples.responses]
        return torch.tensor([len("".join(some)) / len(some) for some in words], dtype=torch.float32)


@found_by("survives_odd_responses", telling="an empty response: -inf")
@dataclass
class LogLength(Words):
    """The log of nothing."""

    def score(self, samples):
        return torch.tensor([float(len(text)) for text in samples.responses]).log()


@found_by("survives_odd_responses", telling="UnicodeEncodeError")
@dataclass
class Ascii(Words):
    """Knows one alphabet."""

    def values(self, samples):
        return [len(text.encode("ascii")) / 10 for text in samples.responses]


@found_by("survives_odd_responses", telling="of 4249 characters: IndexError")
@dataclass
class ShortTable(Words):
    """Has so many positions."""

    def values(self, samples):
        positions = list(range(200))
        return [float(positions[len(text.split())]) for text in samples.responses]


@found_by("survives_an_empty_batch", telling="stack expects a non-empty")
@dataclass
class Stacks(Words):
    """There is nothing to stack."""

    def score(self, samples):
        return torch.stack([torch.tensor(value, dtype=torch.float32) for value in self.values(samples)])


@found_by("reads_text_alone", telling="for 8 responses without tokens")
@dataclass
class CountsTokens(Words):
    """Scores what tokens there are."""

    def score(self, samples):
        return torch.tensor([float(len(tokens)) for tokens in samples.response_ids], dtype=torch.float32)


@found_by("reads_text_alone", telling="IndexError")
@dataclass
class AsksForStops(Words):
    """Takes something off where a response was cut."""

    def score(self, samples):
        cut = torch.tensor([float(samples.stops[i] == "length") for i in range(len(samples))])
        return super().score(samples) - cut


@found_by("leaves_samples_unchanged", telling="score() changed samples.response_ids")
@dataclass
class AppendsTheEnd(Words):
    """Ends responses in place."""

    def score(self, samples):
        for tokens in samples.response_ids:
            if not tokens or tokens[-1] != 0:
                tokens.append(0)
        return super().score(samples)


@found_by("leaves_samples_unchanged", telling="score() changed samples.tokenizer.padding_side")
@dataclass
class SetsTheTokenizer(Words):
    """The policy's tokenizer is not its own."""

    def score(self, samples):
        if samples.tokenizer is not None:
            samples.tokenizer.padding_side = "left"
        return super().score(samples)


@found_by("keeps_its_configuration", telling="setup() changed weights from {} to {'words': 1.0}")
@dataclass
class FillsInDefaults(Words):
    """Writes into its fields what was not given."""

    weights: dict[str, float] = field(default_factory=dict)

    def setup(self, run):
        self.weights.setdefault("words", 1.0)


@found_by("keeps_its_configuration", telling="score() changed temperature from 1.0")
@dataclass
class Anneals(Words):
    """A field that goes down with use."""

    temperature: float = 1.0

    def score(self, samples):
        self.temperature *= 0.9
        return super().score(samples)


@found_by("shares_nothing_with_a_copy", telling="when a copy had been set up and used")
@dataclass
class OnTheClass(Words):
    """What setup makes is the class's; the seed stands for what differs."""

    offset: ClassVar[float] = 0.0

    def setup(self, run):
        type(self).offset = float(run.seed)

    def score(self, samples):
        return super().score(samples) + self.offset


@found_by("totals_its_parts", telling="it has score_parts() and no total()")
@dataclass
class PartsAlone(Words):
    """Nothing puts them together."""

    def score_parts(self, samples):
        return {"words": self.score(samples)}


@found_by("totals_its_parts", telling="by total(score_parts())")
@dataclass
class OtherTotal(Words):
    """Forgets the weight."""

    def score(self, samples):
        return 2 * self.total(self.score_parts(samples))

    def score_parts(self, samples):
        return {"words": super().score(samples)}

    def total(self, parts):
        return sum(parts.values())


@found_by("gives_parts_that_can_be_logged", telling="part words has shape [] for 8 responses")
@dataclass
class MeanPart(Words):
    """A part is logged as a mean, so it gives one."""

    def score_parts(self, samples):
        scores = super().score(samples)
        return {"words": scores.mean(), "all": scores}

    def total(self, parts):
        return parts["all"]


@found_by("gives_parts_that_can_be_logged", telling="a part is called 0")
@dataclass
class NumberedParts(Words):
    """By their numbers."""

    def score_parts(self, samples):
        return {0: super().score(samples)}

    def total(self, parts):
        return parts[0]


@found_by("places_its_steps", "ignores_the_order_of_steps", telling="7 lists for 8 responses")
@dataclass
class LeavesOneOut(Words):
    """The last has no steps."""

    def score_steps(self, samples):
        return [[(0, 1.0)] if tokens else [] for tokens in samples.response_ids][: max(len(samples) - 1, 0)]


@found_by("places_its_steps", telling="place 64 for response 0 of 64 tokens")
@dataclass
class AfterTheEnd(Words):
    """Counts from 1."""

    def score_steps(self, samples):
        return [[(len(tokens), 1.0)] for tokens in samples.response_ids]


@found_by("places_its_steps", telling="place -1 for response")
@dataclass
class OfEmptyResponses(Words):
    """The last token of a response that has none."""

    def score_steps(self, samples):
        return [[(len(tokens) - 1, 1.0)] for tokens in samples.response_ids]


@found_by("places_its_steps", telling="is no whole number")
@dataclass
class Shares(Words):
    """Places as shares of the length."""

    def score_steps(self, samples):
        return [[(0.5, 1.0)] if tokens else [] for tokens in samples.response_ids]


@found_by("places_its_steps", telling="no pair (place, reward)")
@dataclass
class NumbersAlone(Words):
    """A reward for each token."""

    def score_steps(self, samples):
        return [[0.1 for _ in tokens] for tokens in samples.response_ids]


@found_by("ignores_the_order_of_steps", telling="in the reversed batch")
@dataclass
class StepsByPlace(Words):
    """The later in the batch the better."""

    def score_steps(self, samples):
        return [[(0, float(number))] if tokens else [] for number, tokens in enumerate(samples.response_ids)]


@dataclass
class Model(Words):
    """Right: a model behind text, with dropout off, as a tensor of inference mode."""

    size: int = 16

    def setup(self, run):
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            self.table, self.head = nn.EmbeddingBag(257, self.size), nn.Linear(self.size, 1)
        self.to = run.device
        self.table.to(run.device), self.head.to(run.device)

    @torch.inference_mode()
    def score(self, samples):
        codes = [[256, *text.encode()] for text in samples.responses]
        flat = torch.tensor([code for one in codes for code in one], dtype=torch.long, device=self.to)
        starts = torch.tensor([0, *np.cumsum([len(one) for one in codes])[:-1]], dtype=torch.long, device=self.to)
        return self.head(self.table(flat, starts[: len(samples)]))[:, 0].float()


@dataclass
class HalfModel(Model):
    """Right: rounds as bfloat16 does, so that scores differ in the third digit from batch to batch."""

    def score(self, samples):
        with torch.autocast("cpu", torch.bfloat16):
            self.head(torch.zeros(1, self.size))
        return super().score(samples) * (1 + 1e-3 * (len(samples) % 3))


@dataclass
class Judge(Words):
    """Right: refuses what it cannot score, draws numbers that follow from seed and text, caches by both."""

    def setup(self, run):
        self.seed, self.cache = run.seed, {}

    def score(self, samples):
        if len(samples) and samples.tokenizer is None:
            raise UserError("reward: needs tokens")
        return torch.tensor([self.of(pair) for pair in zip(samples.prompts, samples.responses, strict=True)]).float()

    def of(self, pair):
        if pair not in self.cache:
            text = f"{self.seed} {pair[0].shown} {pair[1]}"
            self.cache[pair] = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24
        return self.cache[pair]


@dataclass
class Steps(Words):
    """Right: pays each token that was not said before, and draws from the run's numbers to no effect."""

    coefficient: float = 0.1

    def score(self, samples):
        torch.rand(1)
        return super().score(samples)

    def score_steps(self, samples):
        return [[(ids.index(token), self.coefficient / n) for token, n in Counter(ids).items()] for ids in
                map(list, samples.response_ids)]  # fmt: skip


@dataclass
class PartsOfIt(Words):
    """Right: parts, without steps this time."""

    weights: dict[str, float] = field(default_factory=lambda: {"words": 0.5})

    def score(self, samples):
        return self.total(self.score_parts(samples))

    def score_parts(self, samples):
        return {"words": super().score(samples), "long": torch.tensor([float(len(t) > 50) for t in samples.responses])}

    def total(self, parts):
        return sum((self.weights.get(name, 1.0) * part for name, part in parts.items()), torch.zeros(()))

    def score_steps(self, samples):
        return None


JustWords = dataclass(type("JustWords", (Words,), {"__module__": __name__}))

RIGHT = [Model(), HalfModel(), Judge(), Steps(), PartsOfIt(), JustWords()]


@dataclass
class ChatAlone(Words):
    """Wrong: the user's last turn, which a plain prompt does not have."""

    def values(self, samples):
        return [len(prompt.messages[-1].content) / 10 for prompt in samples.prompts]


@dataclass
class SetupFails(Words):
    """Wrong from the start."""

    def setup(self, run):
        raise UserError("reward.path: no such file")
