"""Held-out prompts answered before and after, by algorithms that do not sample to learn."""

import logging

from rlhf_core.contracts.data import split_named
from rlhf_core.errors import UserError
from rlhf_core.experience import Experience, Scored, logprobs_of
from rlhf_core.held_out import HeldOut
from rlhf_core.language_model import LanguageModel
from rlhf_core.run import Run

log = logging.getLogger("rlhf")


class Answers:
    """The policy's answers to held-out prompts, at a KL to the start: the policy as it is when this is made."""

    def __init__(self, run: Run, policy: LanguageModel, start: LanguageModel, split: str, count: int) -> None:
        """``count`` prompts of a split, answered by the policy; ``start`` is a frozen copy of it."""
        self.run, self.start = run, start
        self.held_out = HeldOut(run, policy, split, count)

    @staticmethod
    def of(
        run: Run, policy: LanguageModel, split: str, count: int, start: LanguageModel | None = None
    ) -> "Answers | None":
        """Nothing where the run has no rollout, or the data no prompts; ``start`` as above, copied where not given."""
        if run.settings.rollout is None:
            return None
        try:
            run.data.prompts(split_named(split, "algorithm.eval_split"))
        except UserError as error:
            log.warning("no held-out prompts are answered: %s", error)
            return None
        return Answers(run, policy, start or policy.frozen(), split, count)

    def evaluate(self, step: int) -> dict[str, float]:
        """KL (nats a response), length, scores of the run's reward where it has one, and the evaluators' verdicts."""
        return self.held_out.evaluate(step, self.observe)

    def observe(self, scored: Scored) -> Experience:
        """Sampled responses beside the start's log-probs of them."""
        return Experience.of(scored, logprobs_of(self.run, self.start, scored))

    def headline(self, metrics: dict[str, float]) -> str:
        """What changed, in one line."""
        return self.held_out.headline(metrics)
