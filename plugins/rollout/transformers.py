"""Sampling in this process with the transformers model itself: prompts once, one token a response and step.

n responses under way, V vocabulary, H hidden size.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_core.batch import Packed
from rlhf_core.contracts.rollout import Rollout
from rlhf_core.errors import UserError, at_least
from rlhf_core.kv_cache import KVCache
from rlhf_core.language_model import LanguageModel, reached, unadapted

Sampler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Tokens ``[n]`` after hidden states ``[n, H]`` by uniform numbers ``[n]``, and their log-probs ``[n]``."""


@dataclass
class Transformers:
    """Ancestral sampling with continuous batching: a response that ends makes room for one that waits.

    Each token of each response has a uniform number of its own, drawn before the first step, so that samples depend on
    neither ``batch_size`` nor who samples which prompts. A subclass may put text into responses, see ``insert``.
    """

    rlhf_api: ClassVar[int] = 1

    temperature: float = 1.0  # logits are divided by this, for the recorded log-probs too
    top_p: float = 1.0  # nucleus sampling; training on samples needs 1
    max_new_tokens: int = 48
    batch_size: int = 128  # most responses sampled side by side

    def generate(self, model: LanguageModel, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Rollout:
        """One response to each prompt; neighbours with the same prompt share its keys and values."""
        if self.temperature <= 0:
            raise UserError(f"rollout.temperature: got {self.temperature}, expected more than 0 (rollouts sample)")
        at_least(1, rollout__max_new_tokens=self.max_new_tokens, rollout__batch_size=self.batch_size)
        model.fit(max(map(len, prompts), default=0) + self.max_new_tokens, "rollout.max_new_tokens")
        if not prompts:
            return Rollout(prompts, [], [], [])
        with model.decoding() as dtype:
            uniform = torch.rand(len(prompts), self.draws_per_response, dtype=torch.float64, generator=generator)
            batch = Batch(prompts, model, self, self.sampler(model, dtype), uniform)
            while batch.rows or batch.waiting:
                batch.admit()
                batch.step()
        stops = ["eos" if response and response[-1] == model.end else "length" for response in batch.responses]
        logprobs = [torch.tensor(row) for row in batch.logprobs]
        return Rollout(prompts, batch.responses, logprobs, stops, batch.chosen if batch.inserts else ())

    @property
    def draws_per_response(self) -> int:
        """How many float64 numbers each response takes from the generator, whatever its length."""
        return self.max_new_tokens

    def insert(self, model: LanguageModel, response: Sequence[int]) -> list[int]:
        """What comes next without being sampled, a tool's answer for instance; asked after each sampled token.

        Such tokens count towards ``max_new_tokens``, have log-prob 0 and are not trained on.
        """
        return []

    def sampler(self, model: LanguageModel, dtype: torch.dtype | None) -> Sampler:
        """How tokens are drawn."""
        if self.top_p == 1:
            return model.sampler(self.temperature, dtype)
        distribution = model.next_token(self.temperature, dtype)

        def from_nucleus(states: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            logprobs = distribution(states)
            tokens = draw(logprobs, self.top_p, uniform)
            return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

        return from_nucleus


class Batch:
    """Responses under way, and those that wait for a place."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        model: LanguageModel,
        sampling: Transformers,
        sampler: Sampler,
        uniform: Tensor,
    ) -> None:
        """Nothing sampled yet; ``uniform`` are ``[responses, max_new_tokens]`` numbers to draw by."""
        self.prompts, self.model, self.sampling, self.end = prompts, model, sampling, model.end
        self.size = min(sampling.batch_size, len(prompts))
        self.waiting = [  # responses to one prompt, together as long as a batch holds them
            same[start : start + self.size]
            for same in (list(run) for _, run in groupby(range(len(prompts)), lambda index: tuple(prompts[index])))
            for start in range(0, len(same), self.size)
        ]
        slots = min(self.size, len(self.waiting))
        self.cache = KVCache(self.size, sampling.max_new_tokens, slots, max(map(len, prompts)), model.device)
        self.free = list(range(slots))  # places for prompts
        self.rows: list[int] = []  # which response each slot of the cache is
        self.prompt_slots: list[int] = []  # and the place of its prompt
        self.begun = 0  # how many of them have tokens already
        self.states = torch.empty(0)  # [new rows, H] the prompts' last hidden states, for those that have none
        self.responses: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.sampler, self.uniform = sampler, uniform
        self.inserts = type(sampling).insert is not Transformers.insert
        self.chosen: list[list[bool]] = [[] for _ in prompts]  # whether tokens were sampled
        self.pending: list[list[int]] = [[] for _ in prompts]  # tokens to insert

    def admit(self) -> None:
        """Run the prompts that there is room for, and begin their responses."""
        groups: list[list[int]] = []
        room = self.size - len(self.rows)
        while self.waiting and self.free[len(groups) :] and len(self.waiting[0]) <= room:
            room -= len(self.waiting[0])
            groups.append(self.waiting.pop(0))
        if not groups:
            return
        slots, self.free = self.free[: len(groups)], self.free[len(groups) :]
        row = Packed.of([self.prompts[group[0]] for group in groups], self.model.device)
        self.cache.prefill(slots, row.lengths.tolist())
        hidden = self.forward(row.tokens, row.positions, row.cu_seqlens)
        owners = [slot for slot, group in zip(slots, groups, strict=True) for _ in group]
        counts = torch.tensor([len(group) for group in groups], device=hidden.device)
        self.states = hidden[row.cu_seqlens[1:].long() - 1].repeat_interleave(counts, 0)
        self.cache.admit(owners)
        self.prompt_slots += owners
        self.rows += [index for group in groups for index in group]

    def step(self) -> None:
        """One more token for every response under way."""
        states = self.states
        if self.begun:
            last = torch.tensor([self.responses[index][-1] for index in self.rows[: self.begun]])
            positions = self.cache.positions()[: self.begun]
            self.cache.decode(self.begun)
            hidden = self.forward(last.to(self.model.device), positions)
            self.cache.grown()
            states = torch.cat([hidden, states]) if len(states) else hidden
        self.states, self.begun = states[:0], len(self.rows)
        uniform = self.uniform[self.rows, [len(self.responses[index]) for index in self.rows]]
        tokens, logprobs = self.sampler(states, uniform)
        for index, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=True):
            self.take(index, token, logprob)
        for place in reversed([place for place, index in enumerate(self.rows) if self.ended(self.responses[index])]):
            self.leave(place)

    def take(self, index: int, token: int, logprob: float) -> None:
        """Append what was sampled, or else the next token of what is to be inserted there."""
        response, pending = self.responses[index], self.pending[index]
        sampled = not pending
        response.append(token if sampled else pending.pop(0))
        self.logprobs[index].append(logprob if sampled else 0.0)
        if self.inserts:
            self.chosen[index].append(sampled)
            if sampled and not self.ended(response):
                pending += self.sampling.insert(self.model, response)

    def ended(self, response: Sequence[int]) -> bool:
        """Whether a response has its end token or no room for more."""
        return response[-1] == self.end or len(response) == self.sampling.max_new_tokens

    def leave(self, place: int) -> None:
        """A response has ended; the last one takes its slot, and a prompt that nobody needs any more makes room."""
        self.cache.drop(place)
        self.rows[place], self.prompt_slots[place] = self.rows[-1], self.prompt_slots[-1]
        self.rows.pop()
        self.prompt_slots.pop()
        self.begun -= 1
        used = Counter(self.prompt_slots)
        self.free += [slot for slot in range(self.cache.prompts) if not used[slot] and slot not in self.free]

    def forward(self, tokens: Tensor, positions: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """``[tokens, H]`` last hidden states: of packed prompts, or of one new token of each response."""
        model: Any = unadapted(self.model.model).base_model
        output = model(
            input_ids=tokens[None],
            position_ids=positions[None],
            cu_seqlens=cu_seqlens,
            kv_cache=self.cache,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def draw(logprobs: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """``[n]`` int64 tokens from the nucleus of ``top_p`` (arXiv:1904.09751) of ``[n, V]`` log-probabilities."""
    ordered, order = logprobs.exp().sort(dim=1, descending=True)
    ordered[ordered.cumsum(1) - ordered >= top_p] = 0
    return order.gather(1, reached(ordered, uniform)[:, None])[:, 0]
