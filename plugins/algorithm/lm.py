"""Pretraining: predict the next token of plain text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rlhf_core.batch import Packed
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.contracts.data import Split, split_named
from rlhf_core.errors import at_least
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order, per_step, spaced, within
from rlhf_core.run import Run
from rlhf_core.text import encode_document

Example = tuple[list[int], int]
"""Tokens, and how many of them at the start are given rather than predicted."""


@dataclass(frozen=True)
class Microbatch:
    """Packed sequences, which tokens count, and how many count in the whole minibatch."""

    packed: Packed
    mask: torch.Tensor
    denominator: int


@dataclass
class LM:
    """Next-token prediction on plain text (Radford et al. 2018): minimise −1/N · Σ_t log p(x_t | x_<t)."""

    rlhf_api: ClassVar[int] = 1

    epochs: float = 2.0  # passes over the data
    batch_size: int = 32  # documents an optimiser step
    max_length: int = 256  # tokens; a longer document is cut into pieces
    eval_examples: int = 512  # held-out documents measured
    eval_split: str = "test"  # where they come from: validation or test
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=4e-3, weight_decay=0.1, warmup_steps=30))

    def setup(self, run: Run) -> nn.Module:
        """Load the policy and tokenise the data."""
        at_least(1, algorithm__batch_size=self.batch_size, algorithm__eval_examples=self.eval_examples)
        at_least(2, algorithm__max_length=self.max_length)
        self.run = run
        self.model = run.policy.language_model(run.data)
        self.model.model.to(run.device).train()
        self.model.fit(self.max_length, "algorithm.max_length")
        self.examples = self.read("train")
        self.held_out = spaced(self.read(split_named(self.eval_split, "algorithm.eval_split")), self.eval_examples)
        self.order = Order(len(self.examples), self.batch_size, run.seed, "examples")
        return self.model.model

    def read(self, split: Split) -> list[Example]:
        """All tokens of a document are predicted but the first."""
        documents = (encode_document(self.model.tokenizer, text) for text in self.run.data.text(split))
        return [(piece, 1) for tokens in documents for piece in pieces(tokens, self.max_length)]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of ``epochs`` passes over the data."""
        return self.order.steps(self.epochs)

    def arithmetic(self) -> str:
        """The batch arithmetic in one line."""
        tokens = sum(len(tokens) for tokens, _ in self.examples)
        passes = f"{len(self.examples)} examples ({tokens} tokens) × {self.epochs:g} epochs"
        return f"{passes} {per_step(self.order, self.total_steps, self.run.microbatch_tokens)}"

    def collect(self, step: int) -> list[Example]:
        """The examples of a step."""
        return [self.examples[index] for index in self.order.batch(step)]

    def minibatches(self, batch: list[Example]) -> Iterable[list[Microbatch]]:
        """One optimiser step on the whole batch."""
        yield self.cut(batch)

    def cut(self, batch: list[Example]) -> list[Microbatch]:
        """The batch in microbatches."""
        return list(microbatches(batch, self.run.microbatch_tokens, self.run.device))

    def loss(self, microbatch: Microbatch) -> Loss:
        """−Σ log p of the tokens that count, over the whole minibatch's number of them."""
        total = -(self.model.logprobs(microbatch.packed) * microbatch.mask).sum()
        count = float(microbatch.mask.sum())
        return Loss(total / microbatch.denominator, {"loss": total.detach() / max(count, 1)}, count)

    def metrics(self, batch: list[Example]) -> dict[str, float]:
        """How many tokens were predicted."""
        return {"tokens": float(sum(len(tokens) - given for tokens, given in batch))}

    def evaluate(self, step: int) -> dict[str, float]:
        """Mean loss (nats a token) on held-out examples, and its exponential."""
        if not self.held_out:
            return {}
        with self.model.evaluating():
            loss = sum(float(self.loss(microbatch).value) for microbatch in self.cut(self.held_out))
        return {"loss": loss, "perplexity": float(torch.tensor(loss).exp())}

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the parameters: the order of the data follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, folder: Path) -> None:
        """The language model."""
        self.model.save(folder)

    def headline(self, metrics: dict[str, float]) -> str:
        """Held-out perplexity."""
        if not metrics:
            return f"nothing measured: the data have no examples in {self.eval_split!r}"
        return f"held-out perplexity {metrics['perplexity']:.1f} ({metrics['loss']:.3f} nats a token)"


def pieces(tokens: list[int], length: int) -> list[list[int]]:
    """A document in pieces of at most ``length`` tokens; each begins with the one before's last, which is given."""
    return [tokens[start : start + length] for start in range(0, max(1, len(tokens) - 1), length - 1)]


def microbatches(batch: list[Example], budget: int, device: torch.device) -> Iterator[Microbatch]:
    """The batch cut to pieces of at most ``budget`` tokens; each knows how many tokens count in the whole."""
    batch = sorted(batch, key=lambda example: len(example[0]))  # like lengths together
    denominator = sum(len(tokens) - given for tokens, given in batch)
    for group in within([len(tokens) for tokens, _ in batch], budget):
        chosen = [batch[index] for index in group]
        flags = [place >= given for tokens, given in chosen for place in range(len(tokens))]
        row, mask = Packed.of([tokens for tokens, _ in chosen], device), torch.tensor(flags, device=device)
        yield Microbatch(Packed(row.tokens, row.cu_seqlens, mask), mask, denominator)
