"""Sampling in this process with the transformers model itself and its KV cache.

B responses under way, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_core.contracts.rollout import Rollout
from rlhf_core.errors import UserError, at_least
from rlhf_core.language_model import LanguageModel, unadapted


@dataclass
class Transformers:
    """Batched ancestral sampling; finished responses leave the batch."""

    rlhf_api: ClassVar[int] = 1

    temperature: float = 1.0  # logits are divided by this, for the recorded log-probs too
    top_p: float = 1.0  # nucleus sampling; training on samples needs 1
    max_new_tokens: int = 48
    batch_size: int = 128  # most responses sampled side by side

    def generate(self, model: LanguageModel, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Rollout:
        """One response to each prompt."""
        if self.temperature <= 0:
            raise UserError(f"rollout.temperature: got {self.temperature}, expected more than 0 (rollouts sample)")
        at_least(1, rollout__max_new_tokens=self.max_new_tokens, rollout__batch_size=self.batch_size)
        model.fit(max(map(len, prompts), default=0) + self.max_new_tokens, "rollout.max_new_tokens")
        responses: list[list[int]] = []
        logprobs: list[Tensor] = []
        with model.evaluating():
            for start in range(0, len(prompts), self.batch_size):
                batch = Batch(prompts[start : start + self.batch_size], model)
                while batch.rows and batch.length < self.max_new_tokens:
                    batch.step(model, self, generator)
                responses += batch.responses
                logprobs += [torch.tensor(row) for row in batch.logprobs]
        stops = ["eos" if response and response[-1] == model.end else "length" for response in responses]
        return Rollout(prompts, responses, logprobs, stops)


class Batch:
    """Responses under way: left-padded prompts, a cache, and which responses still grow."""

    def __init__(self, prompts: Sequence[Sequence[int]], model: LanguageModel) -> None:
        """Nothing sampled yet."""
        longest = max(map(len, prompts))
        padded = [[model.end] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        attended = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.inputs = torch.tensor(padded, device=model.device)
        self.attended = torch.tensor(attended, device=model.device)
        self.cache: Any = None
        self.rows = list(range(len(prompts)))  # which response each row of the batch is
        self.responses: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.length = 0

    def step(self, model: LanguageModel, sampling: Transformers, generator: torch.Generator) -> None:
        """One more token for every response that still grows."""
        logprobs = self.forward(model, sampling.temperature)
        tokens = draw(logprobs, sampling.top_p, generator)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        growing = []
        for place, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            self.responses[row].append(token)
            self.logprobs[row].append(chosen[place])
            if token != model.end:
                growing.append(place)
        self.length += 1
        self.inputs = tokens[:, None]
        self.attended = torch.cat([self.attended, self.attended.new_ones(len(self.rows), 1)], dim=1)
        if len(growing) < len(self.rows):
            self.keep(growing)

    def forward(self, model: LanguageModel, temperature: float) -> Tensor:
        """``[B, V]`` float32 log-probabilities of the next token."""
        positions = (self.attended.cumsum(1) - 1).clamp(min=0)[:, -self.inputs.shape[1] :]
        output = unadapted(model.model).base_model(
            input_ids=self.inputs,
            attention_mask=self.attended,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        return model.distribution(output.last_hidden_state[:, -1], temperature)

    def keep(self, places: list[int]) -> None:
        """Let the other rows go: they are finished."""
        self.rows = [self.rows[place] for place in places]
        if places:
            index = torch.tensor(places, device=self.inputs.device)
            self.inputs, self.attended = self.inputs[index], self.attended[index]
            self.cache.batch_select_indices(index)


def draw(logprobs: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """``[B]`` int64 tokens drawn by ``[B, V]`` log-probabilities from the nucleus of ``top_p`` (arXiv:1904.09751)."""
    probabilities = logprobs.exp()
    if top_p < 1:
        ordered, order = probabilities.sort(dim=1, descending=True)
        ordered[ordered.cumsum(1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logprobs.device)
