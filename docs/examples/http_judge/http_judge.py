"""A reward that asks a slow judge behind HTTP, and says what happens where the judge does not answer."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import httpx
import torch
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential
from torch import Tensor

from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError, at_least, one_of
from rlhf_core.run import Run

log = logging.getLogger("rlhf.http_judge")
Item = dict[str, str]
"""``prompt`` and ``response``, as people read them."""


@dataclass
class HTTPJudge:
    """Scores by ``POST url {"items": [{"prompt", "response"}, …]}``, answered by ``{"scores": [number, …]}``.

    Requests are batched, several are under way at once, each is limited in time and tried again after errors that
    pass (no connection, too slow, 429, 5xx). What then still fails stops the run (``on_failure=error``), or gets
    ``failure_score`` and is counted: ``reward/failed``, or ``reward/NAME/failed`` in a sum, is the share of a rollout.
    """

    rlhf_api: ClassVar[int] = 1

    url: str = "???"  # of the judge
    batch_size: int = 16  # responses a request
    concurrency: int = 4  # requests under way at once
    timeout: float = 60.0  # seconds that one request may take
    attempts: int = 4  # how often a request is made before it counts as failed
    longest_wait: float = 20.0  # seconds between two attempts, at most
    on_failure: str = "error"  # error stops the run; score goes on with failure_score
    failure_score: float = 0.0  # of responses that the judge did not score
    token_variable: str = ""  # the environment variable with a bearer token, for config.yaml must not hold secrets

    def setup(self, run: Run) -> None:
        """Check the settings, before the first response is sampled."""
        one_of("reward.on_failure", self.on_failure, ("error", "score"))
        at_least(1, reward__batch_size=self.batch_size, reward__concurrency=self.concurrency)
        at_least(1, reward__attempts=self.attempts)
        self.headers = {}
        if self.token_variable:
            if self.token_variable not in os.environ:
                raise UserError(
                    f"reward.token_variable: {self.token_variable} is not set; export it with the judge's token"
                )
            self.headers = {"Authorization": f"Bearer {os.environ[self.token_variable]}"}

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32 scores."""
        return self.total(self.score_parts(samples))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The verdict; ``failed`` is only logged."""
        return parts["verdict"]

    def score_parts(self, samples: Samples) -> Mapping[str, Tensor]:
        """``[B]`` float32 each: ``verdict``, and ``failed``, which is 1 where the judge did not answer."""
        pairs = zip(samples.prompts, samples.responses, strict=True)
        items = [{"prompt": prompt.shown, "response": response} for prompt, response in pairs]
        scores = asyncio.run(self.ask_all(items))
        verdict = [self.failure_score if score is None else score for score in scores]
        failed = [float(score is None) for score in scores]
        return {
            "verdict": torch.tensor(verdict, dtype=torch.float32),
            "failed": torch.tensor(failed, dtype=torch.float32),
        }

    async def ask_all(self, items: Sequence[Item]) -> list[float | None]:
        """The scores of all, in their order; None where the judge failed and the run goes on."""
        starts = range(0, len(items), self.batch_size)
        limits = httpx.Limits(max_connections=self.concurrency)
        patience = httpx.Timeout(self.timeout, pool=None)  # waiting for one's turn is not the judge's time
        async with httpx.AsyncClient(headers=self.headers, limits=limits, timeout=patience) as client:
            batches = [items[start : start + self.batch_size] for start in starts]
            found = await asyncio.gather(*(self.ask(client, batch) for batch in batches))
        return [score for scores in found for score in scores]

    async def ask(self, client: httpx.AsyncClient, batch: Sequence[Item]) -> Sequence[float | None]:
        """The scores of one request, tried again where that helps."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self.attempts), wait=wait_random_exponential(max=self.longest_wait),
            retry=retry_if_exception(passes), reraise=True,
        )  # fmt: skip
        try:
            return await attempts(self.request, client, batch)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            cause = " ".join(str(error).split()) or f"no answer within {self.timeout:g} s"
            if self.on_failure == "error":
                raise UserError(
                    f"reward.url: the judge at {self.url} failed: {cause}; repair it and resume, or go on without its "
                    "answers by reward.on_failure=score"
                ) from error
            log.warning("the judge failed: %s; %d responses get %g", cause, len(batch), self.failure_score)
            return [None] * len(batch)

    async def request(self, client: httpx.AsyncClient, batch: Sequence[Item]) -> list[float]:
        """One attempt; an answer that is not one finite number a response is an error like others."""
        async with asyncio.timeout(self.timeout):  # httpx limits each read, this the whole
            answer = await client.post(self.url, json={"items": list(batch)})
        answer.raise_for_status()
        return checked(answer.json(), len(batch))


def checked(answer: Any, count: int) -> list[float]:
    """The scores in an answer.

    Raises:
        ValueError: it holds something else.
    """
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(f'expected {{"scores": [{count} numbers]}}, got {str(answer)[:80]}')
    if wrong := [score for score in scores if not isinstance(score, int | float) or not isfinite(score)]:
        raise ValueError(f"expected finite numbers, got {wrong[0]!r}")
    return [float(score) for score in scores]


def passes(error: BaseException) -> bool:
    """Whether an error may be gone at the next attempt: no connection, too slow, too busy, the server's own fault."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError | TimeoutError)
