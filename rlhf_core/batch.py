"""Ragged batches: sequences laid end to end, never padded; prompts that several responses share are computed once.

N packed tokens, B sequences, M tokens of the folded row. A per-token value at index t speaks of token t:
``logprobs[t]`` is log p(token t | those before it in its sequence), ``values[t]`` the value of the state in which token
t was chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from .kernels.logprobs import IGNORED


@dataclass(frozen=True)
class Folded:
    """A packed row as a model reads it: a prompt that several sequences begin with is there once.

    Attributes:
        tokens: ``[M]`` int64; prompt₀, its responses, prompt₁, its responses, …
        positions: ``[M]`` int64, counted from a prompt's start and on through its responses.
        cu_seqlens: int32 offsets of those parts.
        responses_per_prompt: ``[P]`` int32, or None: nothing is shared, and this is the packed row itself.
        rows: ``[N]`` int64 where each packed token lies in the folded row; None as above.
    """

    tokens: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    responses_per_prompt: Tensor | None = None
    rows: Tensor | None = None

    def unfolded(self, values: Tensor) -> Tensor:
        """``[N,…]`` of ``[M,…]``: every sequence gets its own copy of its prompt's."""
        return values if self.rows is None else values.index_select(0, self.rows)


@dataclass(frozen=True)
class Packed:
    """B sequences of token ids in one row.

    Attributes:
        tokens: ``[N]`` int64.
        cu_seqlens: ``[B+1]`` int32, the offsets at which sequences begin; first 0, last N.
        predicted: ``[N]`` bool, the tokens whose log-prob is asked for; None: all but each sequence's first.
        prompts: for each sequence the number of its prompt and how many tokens that has; neighbours with the same
            number share it. Empty: nothing is shared.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    predicted: Tensor | None = None
    prompts: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], device: torch.device | None = None) -> "Packed":
        """Lay sequences end to end."""
        flat = [token for sequence in sequences for token in sequence]
        return Packed(torch.tensor(flat, dtype=torch.long, device=device), offsets(map(len, sequences), device))

    @staticmethod
    def answers(
        prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device | None = None
    ) -> "Packed":
        """Prompt and response of each, end to end; responses are predicted, neighbours with one prompt share it."""
        pairs = list(zip(prompts, responses, strict=True))
        row = Packed.of([[*prompt, *response] for prompt, response in pairs], device)
        flags = [flag for prompt, response in pairs for flag in [False] * len(prompt) + [True] * len(response)]
        predicted = torch.tensor(flags, dtype=torch.bool, device=device)
        numbers = [number for number, (_, same) in enumerate(groupby(map(tuple, prompts))) for _ in same]
        shared = tuple(zip(numbers, map(len, prompts), strict=True))
        return Packed(row.tokens, row.cu_seqlens, predicted, shared)

    @staticmethod
    def joined(parts: Sequence["Packed"]) -> "Packed":
        """Rows one after the other."""
        lengths: list[int] = [length for part in parts for length in part.lengths.tolist()]
        predicted = [part.predicted for part in parts if part.predicted is not None]
        numbers = accumulate((1 + max((number for number, _ in part.prompts), default=-1) for part in parts), initial=0)
        prompts = [
            (first + number, length)
            for first, part in zip(numbers, parts, strict=False)
            for number, length in part.prompts
        ]
        return Packed(
            torch.cat([part.tokens for part in parts]),
            offsets(lengths, parts[0].tokens.device),
            torch.cat(predicted) if len(predicted) == len(parts) else None,
            tuple(prompts) if len(prompts) == len(lengths) else (),
        )

    def select(self, indices: Sequence[int]) -> tuple[Tensor, "Packed"]:
        """The sequences at ``indices``, in that order: where their tokens are in this row, and a row of their own."""
        starts = self.cu_seqlens.tolist()
        rows = torch.cat([torch.zeros(0, dtype=torch.long), *(torch.arange(starts[i], starts[i + 1]) for i in indices)])
        rows, lengths = rows.to(self.tokens.device), [starts[i + 1] - starts[i] for i in indices]
        prompts = tuple(self.prompts[i] for i in indices) if self.prompts else ()
        predicted = None if self.predicted is None else self.predicted[rows]
        return rows, Packed(self.tokens[rows], offsets(lengths, self.tokens.device), predicted, prompts)

    @cached_property
    def lengths(self) -> Tensor:
        """``[B]`` int64 tokens of each sequence."""
        return self.cu_seqlens.diff().long()

    @cached_property
    def sequence(self) -> Tensor:
        """``[N]`` int64 index of the sequence each token belongs to."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """``[N]`` int64 position of each token, counted from its own sequence's start."""
        return torch.arange(len(self.tokens), device=self.tokens.device) - self.cu_seqlens[:-1].long()[self.sequence]

    def per_sequence(self, values: Tensor) -> Tensor:
        """``[B]`` sums of a ``[N]`` tensor over each sequence."""
        return values.new_zeros(len(self.lengths)).index_add_(0, self.sequence, values)

    @cached_property
    def targets(self) -> Tensor:
        """``[N]`` int64 the token that follows each one, ``IGNORED`` where that is not predicted or there is none."""
        targets = torch.roll(self.tokens, -1)
        if self.predicted is not None:
            targets[~torch.roll(self.predicted, -1)] = IGNORED
        targets[self.cu_seqlens[1:].long()[self.lengths > 0] - 1] = IGNORED
        return targets

    @cached_property
    def folded(self) -> Folded:
        """The row that a model reads."""
        groups = [list(places) for _, places in groupby(range(len(self.prompts)), lambda place: self.prompts[place][0])]
        if all(len(places) == 1 for places in groups):
            return Folded(self.tokens, self.positions, self.cu_seqlens)
        starts: list[int] = self.cu_seqlens.tolist()
        parts: list[range] = []  # of the packed row, in the order of the folded one
        rows: list[Tensor] = []
        used = 0
        for places in groups:
            first = places[0]
            # A sequence that shares nothing is a prompt without responses.
            prompt = self.prompts[first][1] if len(places) > 1 else starts[first + 1] - starts[first]
            parts.append(range(starts[first], starts[first] + prompt))
            shared, used = torch.arange(used, used + prompt), used + prompt
            if len(places) == 1:
                rows.append(shared)
                continue
            for place in places:
                own = range(starts[place] + prompt, starts[place + 1])
                parts.append(own)
                rows += [shared, torch.arange(used, used + len(own))]
                used += len(own)
        device = self.tokens.device
        kept = torch.cat([torch.arange(part.start, part.stop) for part in parts]).to(device)
        counts = [len(places) if len(places) > 1 else 0 for places in groups]
        return Folded(
            self.tokens[kept],
            self.positions[kept],
            offsets(map(len, parts), device),
            torch.tensor(counts, dtype=torch.int32, device=device),
            torch.cat(rows).to(device),
        )

    @cached_property
    def costs(self) -> list[int]:
        """Tokens that each sequence adds to a folded row when the one before it is there."""
        before = [None, *(number for number, _ in self.prompts)]
        shared = [length if number == last else 0 for (number, length), last in zip(self.prompts, before, strict=False)]
        lengths: list[int] = self.lengths.tolist()
        return [length - saved for length, saved in zip(lengths, shared or [0] * len(lengths), strict=True)]

    def slice(self, first: int, last: int) -> "Packed":
        """The sequences ``first … last − 1``."""
        begin, end = int(self.cu_seqlens[first]), int(self.cu_seqlens[last])
        predicted = None if self.predicted is None else self.predicted[begin:end]
        offset = self.cu_seqlens[first : last + 1] - begin
        return Packed(self.tokens[begin:end], offset, predicted, self.prompts[first:last])

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut a ``[N]`` tensor into one a sequence."""
        return list(torch.split(values, self.lengths.tolist()))


def offsets(lengths: Iterator[int] | Sequence[int], device: torch.device | None = None) -> Tensor:
    """``[B+1]`` int32 cumulative offsets of sequences of the given lengths."""
    sizes = torch.tensor([0, *lengths], dtype=torch.int64, device=device)
    return sizes.cumsum(0).to(torch.int32)


def following(values: Tensor) -> Tensor:
    """Move values from the position that predicts to the token predicted: ``out[t] = values[t-1]``, ``out[0] = 0``.

    A sequence's first token is predicted by nothing; give it 0 by an ``IGNORED`` target or a mask.
    """
    return torch.cat([values.new_zeros(1), values[:-1]])
