"""Right algorithms in other styles than ours: nothing derived from, nothing more than needed, plain PyTorch."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_core.advantages import leave_one_out, per_token
from rlhf_core.batch import Packed
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.contracts.reward import Samples
from rlhf_core.experience import Experience, Microbatch, minibatches, sample_and_score
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order
from rlhf_core.run import Run
from rlhf_core.text import encode_prompt, encode_response


@dataclass
class Bare:
    """REINFORCE with a leave-one-out baseline, in one piece: the six methods that are needed."""

    rlhf_api: ClassVar[int] = 1

    steps: int = 20
    prompts: int = 8
    answers: int = 4
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-3))

    def setup(self, run: Run) -> nn.Module:
        self.run = run
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()
        self.rows = list(run.data.prompts("train"))
        self.order = Order(len(self.rows), self.prompts, run.seed)
        return self.policy.model

    @property
    def total_steps(self) -> int:
        return self.steps

    def collect(self, step: int) -> Experience:
        rows = [self.rows[index] for index in self.order.batch(step) for _ in range(self.answers)]
        scored = sample_and_score(self.run, self.policy, rows, self.run.generator("rollout", step))
        old = Experience.of(scored, scored.logprobs)
        return replace(old, advantages=per_token(old, self.advantages(scored.totals)))

    def advantages(self, scores: Tensor) -> Tensor:
        return leave_one_out(scores, self.answers)

    def loss(self, old: Experience) -> Loss:
        logprobs = self.logprobs(old)
        value = -(logprobs * old.advantages * old.mask).sum() / len(old.scores)
        return Loss(value, {"loss": value.detach()})

    def logprobs(self, old: Experience) -> Tensor:
        return self.policy.logprobs(old.packed, self.run.rollout.temperature)

    def save(self, folder: Path) -> None:
        self.policy.save(folder)


@dataclass
class Plain(Bare):
    """The same in minibatches and microbatches, with a ratio and metrics."""

    epochs: int = 1
    count: int = 1

    def collect(self, step: int) -> tuple[int, Experience]:
        return step, super().collect(step)

    def minibatches(self, batch: tuple[int, Experience]) -> Iterable[list[Any]]:
        step, old = batch
        generator, budget = self.run.generator("minibatches", step), self.run.microbatch_tokens
        return minibatches(old, self.epochs, self.count, budget, generator)

    def loss(self, part: Microbatch) -> Loss:
        old = part.experience
        ratio = (self.logprobs(old) - old.logprobs).exp()
        value = -(ratio * old.advantages * old.mask).sum() / part.sequences
        count = int(old.mask.sum())
        chosen = ratio.detach()[old.mask]
        metrics = {"ratio": chosen.sum() / max(count, 1), "loss": value.detach() * part.sequences / max(count, 1)}
        if part.first and count:
            metrics["first_ratio_max"] = chosen.max()
        return Loss(value, metrics, count)

    def metrics(self, batch: tuple[int, Experience]) -> dict[str, float]:
        return {"reward": float(batch[1].totals.mean())}

    def evaluate(self, step: int) -> dict[str, float]:
        scored = sample_and_score(self.run, self.policy, self.rows[:8], self.run.generator("held out"))
        return {"reward": float(scored.totals.mean())}


@dataclass
class Padded(Bare):
    """Padded rows, transformers' own logits, the rollout and the reward asked by hand; a moving baseline, a KL."""

    kl: float = 0.1

    def setup(self, run: Run) -> nn.Module:
        self.mean, self.seen = 0.0, 0
        module = super().setup(run)
        self.reference = deepcopy(module).requires_grad_(False)
        return module

    def collect(self, step: int) -> list[list[dict[str, Any]]]:
        prompts = [self.rows[index] for index in self.order.batch(step) for _ in range(self.answers)]
        ids = [encode_prompt(self.policy.tokenizer, prompt) for prompt in prompts]
        found = self.run.rollout.generate(self.policy, ids, self.run.generator("rollout", step))
        texts = [self.policy.tokenizer.decode(response) for response in found.responses]
        asked = Samples(prompts, texts, ids, found.responses, found.stops, self.policy.tokenizer)
        scores = self.run.reward.score(asked).tolist()
        chosen = found.chosen or [[True] * len(response) for response in found.responses]
        baseline = self.mean if self.seen else sum(scores) / len(scores)
        self.seen += len(scores)
        self.mean += sum(score - self.mean for score in scores) / self.seen
        rows = zip(ids, found.responses, scores, chosen, strict=True)
        return [
            {"prompt": p, "response": r, "advantage": s - baseline, "chosen": c, "count": len(ids)}
            for p, r, s, c in rows
        ]

    def minibatches(self, batch: list[Any]) -> Iterable[list[Any]]:
        size = max(1, self.run.microbatch_tokens // 12)
        return [[batch[start : start + size] for start in range(0, len(batch), size)]]

    def loss(self, rows: list[dict[str, Any]]) -> Loss:
        logprobs, mask = self.of_tokens(self.policy.model, rows)
        with torch.no_grad():
            reference, _ = self.of_tokens(self.reference, rows)
        advantages = torch.tensor([row["advantage"] for row in rows])[:, None]
        kl = (reference - logprobs).exp() - (reference - logprobs) - 1
        value = ((-advantages * logprobs + self.kl * kl) * mask).sum() / rows[0]["count"]
        tokens = int(mask.sum())
        return Loss(value, {"kl_k3": (kl.detach() * mask).sum() / max(tokens, 1)}, tokens)

    def of_tokens(self, model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Log-probs ``[B, T - 1]`` of all tokens but the first, and which of them were chosen."""
        width = max(len(row["prompt"]) + len(row["response"]) for row in rows)
        tokens = torch.full((len(rows), width), 1)
        there, mask = torch.zeros_like(tokens), torch.zeros(len(rows), width)
        for place, row in enumerate(rows):
            both = [*row["prompt"], *row["response"]]
            tokens[place, : len(both)], there[place, : len(both)] = torch.tensor(both), 1
            mask[place, len(row["prompt"]) : len(both)] = torch.tensor(row["chosen"]).float()
        logits = model(tokens, attention_mask=there).logits[:, :-1] / self.run.rollout.temperature
        return logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0], mask[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.seen = state["mean"], state["seen"]


@dataclass
class ActorCritic(Plain):
    """A critic that starts at random, its loss beside the policy's, and an entropy bonus."""

    entropy: float = 0.05

    def setup(self, run: Run) -> nn.Module:
        self.critic = run.policy.scalar_model().to(run.device)
        return nn.ModuleDict({"actor": super().setup(run), "critic": self.critic})

    def advantages(self, scores: Tensor) -> Tensor:
        return scores

    def loss(self, part: Microbatch) -> Loss:
        old = part.experience
        logprobs, entropy = self.policy.logprobs_and_entropy(old.packed, self.run.rollout.temperature)
        values = self.critic(old.packed).roll(1)  # of the state before each token
        advantages = old.advantages - values.detach()
        policy = -(logprobs * advantages * old.mask).sum() / part.tokens
        value = ((values - old.advantages).square() * old.mask).sum() / part.tokens
        total = policy + 0.5 * value - self.entropy * (entropy * old.mask).sum() / part.tokens
        return Loss(total, {}, int(old.mask.sum()))


@dataclass
class Imitation:
    """Supervised: rows in an order of its own, whose place is its state; all in training mode."""

    rlhf_api: ClassVar[int] = 1

    batch_size: int = 16
    split: str = "train"
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-3))

    def setup(self, run: Run) -> nn.Module:
        self.run, self.place = run, 0
        self.model = run.policy.language_model(run.data)
        self.model.model.to(run.device).train()
        self.rows = [self.tokens(row) for row in run.data.demonstrations(self.split)]
        return self.model.model

    @property
    def total_steps(self) -> int:
        return len(self.rows) // self.batch_size

    def tokens(self, row: Any) -> tuple[list[int], list[int]]:
        tokenizer = self.model.tokenizer
        return encode_prompt(tokenizer, row.prompt), encode_response(tokenizer, row.response)

    def collect(self, step: int) -> list[tuple[list[int], list[int]]]:
        found = [self.rows[(self.place + index) % len(self.rows)] for index in range(self.batch_size)]
        self.place += self.batch_size
        return found

    def loss(self, rows: list[tuple[list[int], list[int]]]) -> Loss:
        packed = Packed.answers(*zip(*rows, strict=True), device=self.run.device)
        value = -self.model.logprobs(packed).sum() / sum(len(response) for _, response in rows)
        return Loss(value, {"loss": value.item()})

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]

    def save(self, folder: Path) -> None:
        self.model.save(folder)


@dataclass
class Looks:
    """No steps: what the model says of held-out text."""

    rlhf_api: ClassVar[int] = 1
    total_steps: ClassVar[int] = 0

    optimizer: AdamW = field(default_factory=AdamW)

    def setup(self, run: Run) -> nn.Module:
        self.run, self.found = run, {}
        self.model = run.policy.language_model(run.data)
        return self.model.model

    def collect(self, step: int) -> None:
        """No step is asked for."""

    def loss(self, microbatch: None) -> Loss:
        return Loss(torch.zeros(()))

    def evaluate(self, step: int) -> dict[str, float]:
        with self.model.evaluating():
            rows = [[0, *self.model.tokenizer.encode(text)] for text in self.run.data.text("test")]
            self.found = {"logprob": float(self.model.logprobs(Packed.of(rows)).mean())}
        return self.found

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "found.txt").write_text(str(self.found))


RIGHT = [
    Bare(),
    Bare(answers=8, prompts=2),
    Plain(),
    Plain(epochs=2, count=2),
    Padded(),
    ActorCritic(),
    Imitation(),
    Looks(),
]
