"""How the checks of policies make models, and what they ask them.

N packed tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...batch import Packed
from ...contracts.policy import Policy
from ...errors import UserError
from ...language_model import LanguageModel, hidden_states, unadapted
from ...precision import compute_dtype
from ...scalar_model import ScalarModel
from ..check import NotApplicable
from ..world import SmallData, World

LENGTHS = (5, 1, 9, 2, 7)
"""Tokens of the sequences; of one token nothing is predicted."""

MOST_WORDS = 6000
"""The largest vocabulary of which every word is tried as the next one: V² logits."""


def made(policy: Policy, world: World) -> LanguageModel:
    """The policy's model in eval mode, its data the world's."""
    data = SmallData()
    data.setup(0)
    model = policy.language_model(data)
    model.model.to(world.device).eval()
    return model


def scorer(policy: Policy, world: World) -> ScalarModel:
    """The policy's scalar model in eval mode; one that starts from no checkpoint may ask for one.

    Raises:
        NotApplicable: it refuses that too, which one check is about.
    """
    try:
        return scalar(policy, world)
    except UserError as refusal:
        raise NotApplicable(f"it makes no scalar model ({refusal})") from refusal


def scalar(policy: Policy, world: World) -> ScalarModel:
    """The same, whatever is raised."""
    try:
        model = policy.scalar_model()
    except UserError:
        folder = world.new_folder() / "policy"
        made(policy, world).save(folder)
        model = policy.scalar_model(str(folder))
    return model.to(world.device).eval()


def vocabulary(model: LanguageModel) -> int:
    """V: the rows of the head, of which a tokenizer may use fewer."""
    return len(unadapted(model.model).get_output_embeddings().weight)


def sequences(model: LanguageModel | ScalarModel, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Tokens of text, drawn at random."""
    special = {model.tokenizer.eos_token_id, model.tokenizer.pad_token_id}
    rows = len(unadapted(model.model).get_input_embeddings().weight)
    words = [word for word in range(min(rows, len(model.tokenizer))) if word not in special]
    numbers = torch.Generator().manual_seed(seed)
    return [[words[i] for i in torch.randint(len(words), (length,), generator=numbers).tolist()] for length in lengths]


def answers(model: LanguageModel | ScalarModel) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses; of five prompts three neighbours are the same, and one that lies apart."""
    one, other = sequences(model, 1, (4, 3))
    return [one, one, one, other, one], sequences(model, 2, (3, 1, 4, 2, 2))


def packed(model: LanguageModel | ScalarModel, found: Sequence[Sequence[int]]) -> Packed:
    """The sequences in one row, where the model is."""
    return Packed.of(found, next(model.model.parameters()).device)


def allowed(model: nn.Module) -> float:
    """By how much numbers may differ that are the same but for rounding, in what the model computes in."""
    exact = all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())
    return 2e-4 if exact and compute_dtype(model) is None else 0.15


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; numbers that are no numbers in both are the same."""
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    if one.shape != other.shape:
        return float("inf")
    same = (one == other) | (one.isnan() & other.isnan())
    differences = torch.where(same, 0.0, (one - other).abs().nan_to_num(float("inf")))
    return float(differences.max()) if differences.numel() else 0.0


def unlike(one: Sequence[Tensor], other: Sequence[Tensor], most: float) -> str:
    """Which number differs first; empty where none does by more than ``most``."""
    for number, (first, second) in enumerate(zip(one, other, strict=True)):
        if first.shape != second.shape:
            return f"sequence {number} has shape {list(first.shape)} and {list(second.shape)}"
        for place, (before, after) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            if gap(torch.tensor(before), torch.tensor(after)) > most:
                return f"token {place} of sequence {number} has {before:.4f} and {after:.4f}"
    return ""


def every_word(model: LanguageModel, prefix: list[int], temperature: float = 1.0) -> Tensor:
    """``[V]`` log-probs of each word after ``prefix``, as training computes them where that is not too much."""
    count = vocabulary(model)
    with torch.no_grad():
        if count > MOST_WORDS:
            state = hidden_states(model.model, packed(model, [prefix]))[-1:]
            return model.next_token(temperature)(state)[0].cpu()
        row = packed(model, [[*prefix, word] for word in range(count)])
        return model.logprobs(row, temperature)[row.cu_seqlens[1:].long() - 1].cpu()


def padded(model: Any, found: Sequence[list[int]], side: str, padding: int) -> list[Tensor]:
    """``[length, V]`` log-probs after each token by the stock forward on one padded batch, positions as usual there."""
    longest, device = max(map(len, found)), next(model.parameters()).device
    gaps = [[padding] * (longest - len(row)) for row in found]
    left = side == "left"
    ids = [fill + row if left else row + fill for row, fill in zip(found, gaps, strict=True)]
    there = [
        [0] * len(fill) + [1] * len(row) if left else [1] * len(row) + [0] * len(fill)
        for row, fill in zip(found, gaps, strict=True)
    ]
    mask = torch.tensor(there, device=device)
    with torch.no_grad():
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=torch.tensor(ids, device=device), attention_mask=mask, position_ids=places, use_cache=False
        ).logits
    return [row[real.bool()].float().log_softmax(-1).cpu() for row, real in zip(logits, mask, strict=True)]


def following_words(full: Sequence[Tensor], found: Sequence[list[int]]) -> list[Tensor]:
    """``[length]`` log-probs of each token by what was predicted before it; 0 of the first."""
    return [
        torch.cat([torch.zeros(1), words[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]])
        if len(row) > 1
        else torch.zeros(1)
        for words, row in zip(full, found, strict=True)
    ]


def train(model: LanguageModel, steps: int = 3) -> None:
    """A few steps towards some sequences."""
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    if not weights:
        raise NotApplicable("nothing of it is trained")
    optimizer = torch.optim.Adam(weights, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -model.logprobs(packed(model, sequences(model, 3))).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


def saved(model: LanguageModel, world: World) -> Path:
    """Where the model is saved now."""
    folder = world.new_folder() / "result"
    model.save(folder)
    return folder
