"""Right engines of other styles than ours; the wrong ones derive from the second."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlhf_core.batch import Packed
from rlhf_core.contracts.rollout import Rollout
from rlhf_core.errors import UserError
from rlhf_core.language_model import hidden_states


@dataclass
class OneByOne:
    """Calls the model anew for each token of each response; refuses a nucleus."""

    rlhf_api: ClassVar[int] = 1

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 48

    def generate(self, model, prompts, generator):
        if self.top_p != 1:
            raise UserError(f"rollout.top_p: got {self.top_p}, expected 1")
        with model.evaluating():
            found = [self.answer(model, prompt, generator) for prompt in prompts]
        stops = ["eos" if response[-1] == model.end else "length" for response, _ in found]
        return Rollout(prompts, [response for response, _ in found], [row for _, row in found], stops)

    def answer(self, model, prompt, generator):
        response, logprobs = [], []
        while len(response) < self.max_new_tokens and response[-1:] != [model.end]:
            logits = model.model(torch.tensor([[*prompt, *response]])).logits[0, -1]
            words = (logits / self.temperature).log_softmax(-1)
            response.append(int(torch.multinomial(words.exp(), 1, generator=generator)))
            logprobs.append(float(words[response[-1]]))
        return response, torch.tensor(logprobs)


@dataclass
class SideBySide:
    """All responses a token further at each step, computed anew in one packed row; each with its own numbers."""

    rlhf_api: ClassVar[int] = 1

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 48

    @property
    def draws_per_response(self):
        return self.max_new_tokens

    def generate(self, model, prompts, generator):
        uniform = self.uniform(len(prompts), generator)
        responses, logprobs = [[] for _ in prompts], [[] for _ in prompts]
        with model.evaluating():
            while under_way := [i for i, response in enumerate(responses) if not self.ended(model, response)]:
                tokens = [self.read(model, prompts[i]) + responses[i] for i in under_way]
                numbers = uniform[under_way, [len(responses[i]) for i in under_way]]
                words = self.distribution(model, tokens)
                drawn = self.draw(words, numbers)
                for i, row, token in zip(under_way, words, drawn, strict=True):
                    responses[i].append(int(token))
                    logprobs[i].append(self.recorded(row, token))
        return self.finished(model, prompts, responses, [torch.tensor(row) for row in logprobs])

    def uniform(self, count, generator):
        return torch.rand(count, self.max_new_tokens, dtype=torch.float64, generator=generator)

    def read(self, model, prompt):
        return list(prompt)

    def ended(self, model, response):
        return len(response) == self.max_new_tokens or response[-1:] == [model.end]

    def distribution(self, model, tokens):
        row = Packed.of(tokens, model.device)
        states = hidden_states(model.model, row)[row.cu_seqlens[1:].long() - 1]
        return model.next_token(self.temperature)(states)

    def draw(self, words, uniform):
        probabilities, order = words.double().exp().sort(dim=1, descending=True)
        probabilities[probabilities.cumsum(1) - probabilities >= self.top_p] = 0
        sums = (probabilities / probabilities.sum(1, keepdim=True)).cumsum(1)
        places = (sums <= uniform[:, None]).sum(1).clamp(max=sums.shape[1] - 1)
        return order.gather(1, places[:, None])[:, 0]

    def recorded(self, words, token):
        return float(words[token])

    def finished(self, model, prompts, responses, logprobs):
        stops = ["eos" if response[-1] == model.end else "length" for response in responses]
        return Rollout(prompts, responses, logprobs, stops)


@dataclass
class Padded(OneByOne):
    """Stock forward passes on a batch that is padded on the left, tokens as tensors, in chunks of 16."""

    def generate(self, model, prompts, generator):
        if self.top_p != 1:
            raise UserError(f"rollout.top_p: got {self.top_p}, expected 1")
        responses, logprobs = [], []
        with model.evaluating():
            for start in range(0, len(prompts), 16):
                found = self.chunk(model, prompts[start : start + 16], generator)
                responses += [tokens for tokens, _ in found]
                logprobs += [row for _, row in found]
        stops = ["eos" if response[-1] == model.end else "length" for response in responses]
        return Rollout(prompts, responses, logprobs, stops)

    def chunk(self, model, prompts, generator):
        longest = max(map(len, prompts))
        ids = torch.tensor([[model.end] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        values = []
        for _ in range(self.max_new_tokens):
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits[:, -1]
            words = (logits / self.temperature).log_softmax(-1)
            drawn = torch.multinomial(words.exp(), 1, generator=generator)
            values.append(words.gather(1, drawn))
            ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, torch.ones_like(drawn)], 1)
        found = []
        for tokens, row in zip(ids[:, longest:], torch.cat(values, 1), strict=True):
            ends = (tokens == model.end).nonzero()
            length = int(ends[0]) + 1 if len(ends) else len(tokens)
            found.append((tokens[:length], row[:length].clone()))
        return found


@dataclass
class TwoTurns(SideBySide):
    """When the policy has ended its turn, a user says two words, and the policy speaks again."""

    said: tuple[int, ...] = (2, 4, 3)

    @property
    def draws_per_response(self):
        return None

    def generate(self, model, prompts, generator):
        first = super().generate(model, prompts, generator)
        read = [[*prompt, *response, *self.said] for prompt, response in zip(prompts, first.responses, strict=True)]
        second = super().generate(model, read, generator)
        gap = torch.zeros(len(self.said))
        parts = list(zip(first.responses, second.responses, strict=True))
        return Rollout(
            prompts,
            [[*one, *self.said, *two] for one, two in parts],
            [torch.cat([one, gap, two]) for one, two in zip(first.logprobs, second.logprobs, strict=True)],
            second.stops,
            [[True] * len(one) + [False] * len(self.said) + [True] * len(two) for one, two in parts],
        )


@dataclass(frozen=True)
class AtItsOwnTemperature:
    """Cannot be changed once it was made, and neither its temperature nor its top_p is a setting."""

    rlhf_api: ClassVar[int] = 1
    temperature: ClassVar[float] = 0.8
    top_p: ClassVar[float] = 1.0

    longest: int = 3

    def generate(self, model, prompts, generator):
        return OneByOne(self.temperature, self.top_p, self.longest).generate(model, prompts, generator)


RIGHT = [OneByOne(), SideBySide(), SideBySide(1.3, 0.9), Padded(), TwoTurns(),
         AtItsOwnTemperature()]  # fmt: skip
