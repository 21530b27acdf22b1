"""Keys and values of sequences under way: each prompt's once, each response's own behind it.

R response slots of S tokens, P prompt slots of L tokens, Hq query heads, Hk key heads, D head size. The responses under
way are in the first n slots, so that a step reads whole runs of memory; one that leaves is overwritten by the last.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels


@dataclass
class Layer:
    """One layer's keys and values, each head's in one piece: ``[P,Hk,L,D]`` of prompts, ``[R,Hk,S,D]`` of responses."""

    prompt_k: Tensor
    prompt_v: Tensor
    k: Tensor
    v: Tensor


@dataclass
class KVCache:
    """What a rollout keeps; ``attention.py`` fills and reads it, layer by layer, while a model runs.

    Attributes:
        slots: R.
        length: S.
        prompts: P.
        prompt_length: L.
        device: where the model is.
    """

    slots: int
    length: int
    prompts: int
    prompt_length: int
    device: torch.device
    layers: dict[int, Layer] = field(default_factory=dict)
    count: int = 0
    """n"""
    where: tuple[Tensor, Tensor] | None = None
    """prompt slot and position of each token of the packed row that is being prefilled; None while decoding"""

    def __post_init__(self) -> None:
        """Nothing under way."""
        self.filled = torch.zeros(self.slots, dtype=torch.int32, device=self.device)
        self.prompt_of = torch.zeros(self.slots, dtype=torch.int32, device=self.device)
        self.prompt_lengths = torch.zeros(self.prompts, dtype=torch.int32, device=self.device)

    def positions(self) -> Tensor:
        """``[n]`` int64 position of each response's next token."""
        n = self.count
        return (self.prompt_lengths[self.prompt_of[:n].long()] + self.filled[:n]).long()

    def prefill(self, slots: list[int], lengths: list[int]) -> None:
        """The packed row that the model runs on next holds prompts for these slots, of these lengths."""
        sizes = torch.tensor(lengths, device=self.device)
        place = torch.tensor(slots, device=self.device)
        self.prompt_lengths[place] = sizes.int()
        starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        self.where = place.repeat_interleave(sizes), torch.arange(len(starts), device=self.device) - starts

    def admit(self, prompt_slots: list[int]) -> None:
        """Responses to these prompts begin, behind those under way."""
        begin, end = self.count, self.count + len(prompt_slots)
        self.prompt_of[begin:end] = torch.tensor(prompt_slots, dtype=torch.int32, device=self.device)
        self.filled[begin:end] = 0
        self.count = end

    def drop(self, place: int) -> None:
        """The response in slot ``place`` leaves; the last one takes its slot."""
        self.count -= 1
        last = self.count
        if place == last:
            return
        used = int(self.filled[last])
        for layer in self.layers.values():
            layer.k[place, :, :used] = layer.k[last, :, :used]
            layer.v[place, :, :used] = layer.v[last, :, :used]
        self.filled[place], self.prompt_of[place] = self.filled[last], self.prompt_of[last]

    def decode(self, count: int) -> None:
        """The model runs next on one new token of each of the first ``count`` responses."""
        self.where = None
        self.seen = self.filled[:count] + 1
        self.longest = int(self.seen.max())
        self.rows: dict[int, Tensor] = {}
        self.furthest = int(self.positions()[:count].max())

    def _rows(self, heads: int) -> Tensor:
        """``[n·heads]`` where the new keys lie among all rows of a layer's cache; the same for all layers of a step."""
        if heads not in self.rows:
            count = len(self.seen)
            first = torch.arange(count * heads, device=self.device) * self.length
            self.rows[heads] = first + self.filled[:count].long().repeat_interleave(heads)
        return self.rows[heads]

    def grown(self) -> None:
        """Each of those responses has one more token."""
        self.filled[: len(self.seen)] += 1

    def put(self, index: int, k: Tensor, v: Tensor) -> Layer:
        """Store ``[tokens,Hk,D]`` of a layer: the prompts' that are being prefilled, or one of each response."""
        layer = self.layers.get(index)
        if layer is None:
            heads, size = k.shape[1:]
            sizes = [(self.prompts, self.prompt_length)] * 2 + [(self.slots, self.length)] * 2
            layer = self.layers[index] = Layer(*(k.new_empty(many, heads, length, size) for many, length in sizes))
        if self.where is not None:
            slot, position = self.where
            layer.prompt_k[slot, :, position], layer.prompt_v[slot, :, position] = k, v
        else:
            for cache, new in ((layer.k, k), (layer.v, v)):
                rows = self._rows(cache.shape[1])
                cache.view(-1, cache.shape[3]).index_copy_(0, rows, new.reshape(-1, cache.shape[3]))
        return layer

    def attend(self, layer: Layer, q: Tensor, scale: float | None, window: int | None) -> Tensor:
        """``[n,Hq,D]`` of the responses' new tokens ``[n,Hq,D]``, whose own keys are in the cache already."""
        n = len(q)
        k, v = (rows[:n, :, : self.longest].transpose(1, 2) for rows in (layer.k, layer.v))
        prompt_k, prompt_v = layer.prompt_k.transpose(1, 2), layer.prompt_v.transpose(1, 2)
        if window is not None and self.furthest >= window:
            return self._windowed(q, k, v, prompt_k, prompt_v, scale, window)
        return kernels.decode_attention(
            q, k, v, self.seen, scale=scale, prefix_k=prompt_k, prefix_v=prompt_v, prefix_of=self.prompt_of[:n],
            prefix_lengths=self.prompt_lengths,
        )  # fmt: skip

    def _windowed(
        self, q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, scale: float | None, window: int
    ) -> Tensor:
        """The same where a sliding window has moved past the first tokens: by torch, on copies of the prompts."""
        own, seen = self.prompt_of[: len(q)].long(), self.seen
        before = self.prompt_lengths[own][:, None]
        prompt = torch.arange(self.prompt_length, device=self.device).expand(len(q), -1)
        after = torch.arange(k.shape[1], device=self.device).expand(len(q), -1)
        there = torch.cat([prompt < before, after < seen[:, None]], 1)
        position = torch.cat([prompt, before + after], 1)
        mask = there & (before + seen[:, None] - 1 - position < window)
        keys, values = (torch.cat([a[own], b], 1) for a, b in ((prompt_k, k), (prompt_v, v)))
        keys, values = (torch.where(mask[:, :, None, None], rows, 0.0).transpose(1, 2) for rows in (keys, values))
        out = F.scaled_dot_product_attention(
            q[:, :, None], keys, values, attn_mask=mask[:, None, None], scale=scale, enable_gqa=q.shape[1] != k.shape[2]
        )
        return out[:, :, 0]
