"""Imitation of the best: of what people rated, or of the policy's own samples."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from rlhf_core.contracts.data import Demonstration, Split
from rlhf_core.errors import UserError, at_least, one_of
from rlhf_core.experience import sample_and_score
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import spaced
from rlhf_core.run import Run

from .answers import Answers
from .lm import Example
from .sft import SFT

log = logging.getLogger("rlhf")


@dataclass
class FeedME(SFT):
    """Supervised fine-tuning on the best-rated samples: −1/N · Σ log π(y_t | x, y_<t), y the best of its prompt.

    ``source=ratings`` is OpenAI's FeedME (Ouyang et al. 2022, arXiv:2203.02155; samples that people rated best).
    ``source=reward`` is rejection sampling (Touvron et al. 2023, Llama 2, arXiv:2307.09288, §3.2.3): of n samples
    to a prompt the reward's favourite is imitated. They are drawn once, from the policy as it starts.
    """

    rlhf_api: ClassVar[int] = 1

    source: str = "ratings"  # ratings: best responses of human rankings; reward: best of n fresh samples by the reward
    samples: int = 8  # n, samples a prompt with source=reward
    prompts: int = 1024  # training prompts that are sampled with source=reward
    demonstrations: bool = False  # mix the data's demonstrations in
    epochs: float = 1.0  # passes over the data
    eval_examples: int = 128  # held-out examples measured
    eval_prompts: int = 256  # held-out prompts answered, where the run has a rollout
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=3e-4, weight_decay=0.1, warmup_steps=10))

    def setup(self, run: Run) -> nn.Module:
        """As SFT, on chosen responses; the start answers held-out prompts."""
        one_of("algorithm.source", self.source, ("ratings", "reward"))
        at_least(1, algorithm__samples=self.samples, algorithm__prompts=self.prompts)
        module = super().setup(run)
        self.answers = Answers.of(run, self.model, self.eval_split, self.eval_prompts)
        return module

    def read(self, split: Split) -> list[Example]:
        """The best responses, and demonstrations where they are mixed in."""
        best = self.rated(split) if self.source == "ratings" else self.sampled(split)
        return best + (super().read(split) if self.demonstrations else [])

    def rated(self, split: Split) -> list[Example]:
        """Each response once that people put first in a ranking; a ranking of ties has no first."""
        best = dict.fromkeys(
            Demonstration(row.prompt, response)
            for row in self.run.data.rankings(split)
            for response, rank in zip(row.responses, row.ranks, strict=True)
            if rank == min(row.ranks) < max(row.ranks)
        )
        return self.encoded(best)

    def sampled(self, split: Split) -> list[Example]:
        """Of ``samples`` answers to a prompt the one with the highest score; the first where several have it."""
        run, count = self.run, self.prompts if split == "train" else self.eval_examples
        _ = run.reward  # says so where there is none
        if run.rollout.top_p != 1.0:
            raise UserError(
                f"rollout.top_p: got {run.rollout.top_p}, but the best of the policy's own samples needs 1.0"
            )
        chosen = spaced(run.data.prompts(split), count)
        if not chosen:
            return []
        prompts = [prompt for prompt in chosen for _ in range(self.samples)]
        scored = sample_and_score(run, self.model, prompts, run.generator("feedme", split))
        scores = scored.totals.view(-1, self.samples).cpu()
        log.info("%s: best of %d scores %.3f, all %.3f", split, self.samples, scores.amax(1).mean(), scores.mean())
        ids = scored.samples.select([place * self.samples + int(best) for place, best in enumerate(scores.argmax(1))])
        return self.fitting(zip(ids.prompt_ids, ids.response_ids, strict=True))

    def evaluate(self, step: int) -> dict[str, float]:
        """The loss on held-out examples, and the policy's answers beside the start's."""
        return super().evaluate(step) | (self.answers.evaluate(step) if self.answers else {})

    def headline(self, metrics: dict[str, float]) -> str:
        """Held-out perplexity, and what changed in the answers."""
        imitation = super().headline(metrics) if self.held_out else ""
        changed = self.answers.headline(metrics) if self.answers else ""
        return "; ".join(filter(None, (imitation, changed))) or super().headline({})
