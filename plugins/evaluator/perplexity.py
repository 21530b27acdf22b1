"""What a policy still knows of plain text: the alignment tax is how much of it is lost."""

from dataclasses import dataclass
from math import exp
from typing import ClassVar

from rlhf_core.contracts.data import split_named
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.errors import UserError, at_least
from rlhf_core.packing import spaced
from rlhf_core.run import Run
from rlhf_core.text import encode_document

from ..algorithm.lm import microbatches


@dataclass
class Perplexity:
    """Mean loss (nats a token) of the policy on held-out documents, and its exponential.

    Logged as ``text_loss`` and ``text_perplexity``. Pretraining minimised it, so it shows what reinforcement learning
    forgets (the alignment tax, Ouyang et al. 2022, arXiv:2203.02155, §4.2).
    """

    rlhf_api: ClassVar[int] = 1

    split: str = "test"  # whose documents: validation or test
    limit: int = 512  # most documents read
    max_length: int = 256  # tokens; what is longer is cut

    def setup(self, run: Run) -> None:
        """Read the documents."""
        at_least(1, evaluator__perplexity__limit=self.limit)
        at_least(2, evaluator__perplexity__max_length=self.max_length)
        self.run = run
        split = split_named(self.split, "evaluator.perplexity.split")
        self.documents = spaced(list(run.data.text(split)), self.limit)
        if not self.documents:
            raise UserError(f"evaluator.perplexity.split: the data have no documents in {self.split!r}")

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Loss and perplexity of the policy; nothing where there is none."""
        if subject.policy is None:
            return {}
        model = subject.policy
        documents = [(encode_document(model.tokenizer, text)[: self.max_length], 1) for text in self.documents]
        loss = 0.0
        with model.evaluating():
            for part in microbatches(documents, self.run.microbatch_tokens, self.run.device):
                loss -= float((model.logprobs(part.packed) * part.mask).sum()) / part.denominator
        return {"text_loss": loss, "text_perplexity": exp(loss)}
