"""What the policy says: responses beside the start model's, and each token in the colour of its KL or its advantage."""

from dataclasses import dataclass

from rlhf_core.report.read import Run, Sample
from rlhf_core.report.text import number, signed

SHOWN = 6
"""Samples in view; the rest is folded away."""

BYTE_LEVEL = str.maketrans({"Ġ": " ", "Ċ": "\n", "▁": " "})
"""How byte-level and sentencepiece tokenizers write a space and a line break."""


@dataclass(frozen=True)
class Token:
    """One token: its text, its numbers, and how strong its two colours are, -100 … 100."""

    text: str
    kl: float | None
    advantage: float | None
    kl_strength: int
    advantage_strength: int

    @property
    def tip(self) -> str:
        """The numbers, for a tooltip."""
        parts = [("KL", self.kl), ("advantage", self.advantage)]
        return ", ".join(f"{label} {signed(value)}" for label, value in parts if value is not None)


@dataclass(frozen=True)
class Coloured:
    """A sample's response as tokens."""

    sample: Sample
    tokens: list[Token]

    @property
    def total(self) -> float:
        """The response's KL in nats."""
        return sum(self.sample.kl)


@dataclass(frozen=True)
class TokenView:
    """All coloured samples; a colour is full at its scale."""

    samples: list[Coloured]
    kl_scale: float
    advantage_scale: float

    @property
    def advantages(self) -> bool:
        """Whether any token has one; without a critic or a group to compare with there is none."""
        return any(any(coloured.sample.advantages) for coloured in self.samples)


def final_samples(run: Run) -> list[Sample]:
    """The samples of the last step that has any, in file order: not picked."""
    last = max((sample.step for sample in run.samples), default=0)
    return [sample for sample in run.samples if sample.step == last]


def token_view(run: Run) -> TokenView | None:
    """The final samples whose tokens were kept, or None."""
    samples = [sample for sample in final_samples(run) if sample.tokens and (sample.kl or sample.advantages)]
    if not samples:
        return None
    kl_scale = _scale([value for sample in samples for value in sample.kl])
    advantage_scale = _scale([value for sample in samples for value in sample.advantages])
    return TokenView([_coloured(sample, kl_scale, advantage_scale) for sample in samples], kl_scale, advantage_scale)


def score_lines(sample: Sample, after: bool) -> list[str]:
    """A response's scores in words; `after` adds the change from the start model's."""
    if not after:
        return [f"{name} {number(value)}" for name, value in sample.baseline_scores.items()]
    lines = []
    for name, value in sample.scores.items():
        start = sample.baseline_scores.get(name)
        lines.append(f"{name} {number(value)}" + (f" ({signed(value - start)})" if start is not None else ""))
    return lines


def _coloured(sample: Sample, kl_scale: float, advantage_scale: float) -> Coloured:
    tokens = []
    for index, text in enumerate(sample.tokens):
        kl = sample.kl[index] if index < len(sample.kl) else None
        advantage = sample.advantages[index] if index < len(sample.advantages) else None
        strengths = _strength(kl, kl_scale), _strength(advantage, advantage_scale)
        tokens.append(Token(_readable(text), kl, advantage, *strengths))
    return Coloured(sample, tokens)


def _readable(token: str) -> str:
    text = token.translate(BYTE_LEVEL)
    return text.replace("\n", "↵\n") if text else "∅"


def _scale(values: list[float]) -> float:
    """The size that 98 % of values stay under, so that one outlier does not bleach the rest."""
    sizes = sorted(abs(value) for value in values)
    return sizes[round(0.98 * (len(sizes) - 1))] or 1.0 if sizes else 1.0


def _strength(value: float | None, scale: float) -> int:
    return 0 if value is None else max(-100, min(100, round(100 * value / scale)))
