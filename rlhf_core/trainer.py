"""The training loop, the same for every algorithm."""

import logging
import resource
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import ranks
from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .contracts.algorithm import Algorithm, Loss, completed
from .errors import UserError, at_least
from .jsonl import JsonLines
from .progress import Progress

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("rlhf")


class Trainer:
    """Collect, update, log, evaluate, save; then again."""

    def __init__(self, run: "Run", algorithm: Algorithm) -> None:
        """Set the algorithm up, and go on from the newest checkpoint where the run is resumed."""
        self.run, self.algorithm, self.every = run, completed(algorithm), run.settings.trainer
        self.module: nn.Module = algorithm.setup(run)
        self.optimizer = algorithm.optimizer.build(self.module)
        at_least(1, trainer__log_every=self.every.log_every, trainer__microbatch_tokens=self.every.microbatch_tokens)
        limit = self.every.max_steps
        self.total = algorithm.total_steps if limit is None else min(limit, algorithm.total_steps)
        self.metrics, self.timing = JsonLines(run.folder / "metrics.jsonl"), JsonLines(run.folder / "timing.jsonl")
        self.samples = JsonLines(run.folder / "samples.jsonl")
        self.last_evaluation: dict[str, float] = {}
        self.seconds = 0.0  # spent before a resume
        self.idle = False  # whether a minibatch had too few microbatches for all processes
        self.step = run.step = self.restore() if run.resume else 0

    def fit(self) -> dict[str, float]:
        """Train to the last step; returns the last evaluation."""
        self.began = time.perf_counter()
        plan = self.algorithm.arithmetic()
        ranks.agree(plan, "data or settings")
        ranks.agree(ranks.checksum(self.module) if ranks.count() > 1 else 0, "weights")
        log.info(plan)
        print(plan, flush=True)
        with Progress(self.run.name, self.total, self.step) as progress:
            if self.step == 0:
                self.evaluate()
            while self.step < self.total:
                averages = self.train_step()
                self.step += 1
                self.run.step = self.step
                progress.advance(averages)
                if self.step % self.every.log_every == 0 or self.step == self.total:
                    self.write(averages, "train")
                if self.due(self.every.eval_every):
                    self.evaluate()
                if self.due(self.every.checkpoint_every):
                    self.save()
        return self.last_evaluation

    def train_step(self) -> dict[str, float]:
        """One batch: for each minibatch, gradients of all its microbatches and one optimiser step."""
        rate = self.algorithm.optimizer.lr_at(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        averages = Averages()
        batch = self.algorithm.collect(self.step)
        for minibatch in self.algorithm.minibatches(batch):
            for microbatch in self.own(minibatch):
                loss = self.algorithm.loss(microbatch)
                loss.value.backward()  # type: ignore[no-untyped-call]
                averages.add(loss)
            ranks.sum_gradients(self.module)
            averages.gradient_norms.append(self.clip_gradients())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return averages.of_all_ranks().result() | {"lr": rate} | self.algorithm.metrics(batch)

    def own(self, minibatch: list[Any]) -> Sequence[Any]:
        """The microbatches that this process computes."""
        if len(minibatch) < ranks.count() and not self.idle:
            self.idle = True
            budget = self.every.microbatch_tokens
            found = f"{len(minibatch)} microbatches for {ranks.count()} of them"
            print(f"trainer.microbatch_tokens: {budget} leave processes idle: {found}; lower it", flush=True)
        return ranks.deal(minibatch)

    def clip_gradients(self) -> Tensor:
        """Clip the gradient's norm; returns what it was."""
        bound = self.algorithm.optimizer.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), bound)
        if not torch.isfinite(norm):
            raise UserError(
                f"algorithm.optimizer.lr: the gradient is {norm.item()} at step {self.step + 1}; "
                "lower the learning rate (the last checkpoint is unharmed)"
            )
        return norm

    def due(self, every: int) -> bool:
        """Whether something done every so many steps is to be done now; always at the end."""
        return self.step == self.total or bool(every and self.step % every == 0)

    def evaluate(self) -> None:
        """Held-out numbers, logged and kept."""
        self.last_evaluation = self.algorithm.evaluate(self.step)
        if self.last_evaluation:
            self.write(self.last_evaluation, "eval")

    def write(self, values: dict[str, float], phase: str) -> None:
        """One row of metrics, and one of what it took."""
        self.metrics.append({"step": self.step, "phase": phase, **values})
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.timing.append({"step": self.step, "seconds": round(self.elapsed, 3), "peak_rss_mib": round(memory, 1)})
        for tracker in self.run.trackers.values():
            tracker.log(self.step, values, phase)

    @property
    def elapsed(self) -> float:
        """Seconds spent in this stage, those before a resume counted in."""
        return self.seconds + time.perf_counter() - self.began

    def save(self) -> None:
        """A checkpoint from which the run goes on as if it had never stopped."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "evaluation": self.last_evaluation,
            "seconds": self.elapsed,
        }
        save_checkpoint(self.run.folder, self.step, self.module, state, self.every.keep_checkpoints)

    def restore(self) -> int:
        """Go back to the newest checkpoint; returns the steps done by then."""
        saved = checkpoints(self.run.folder)
        step = 0
        if saved:
            state = load_checkpoint(saved[-1], self.module)
            self.optimizer.load_state_dict(state["optimizer"])
            self.algorithm.load_state_dict(state["algorithm"])
            self.last_evaluation, self.seconds, step = state["evaluation"], state["seconds"], state["step"]
        for lines in (self.metrics, self.timing, self.samples):
            lines.rewind(step if saved else -1)
        return step


class Averages:
    """Means of metrics over microbatches, each weighted by what it is a mean over."""

    def __init__(self) -> None:
        """Nothing added yet."""
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.largest: dict[str, float] = {}
        self.gradient_norms: list[Tensor] = []

    def add(self, loss: Loss) -> None:
        """Count one microbatch in."""
        for name, value in loss.metrics.items():
            number = float(value)
            if name.endswith("_max"):
                self.largest[name] = max(number, self.largest.get(name, number))
            else:
                self.sums[name] = self.sums.get(name, 0.0) + loss.weight * number
                self.weights[name] = self.weights.get(name, 0.0) + loss.weight

    def of_all_ranks(self) -> "Averages":
        """What all processes have added."""
        whole = Averages()
        whole.gradient_norms = self.gradient_norms  # of the sum already
        for sums, weights, largest in ranks.gather((self.sums, self.weights, self.largest)):
            for mine, theirs in ((whole.sums, sums), (whole.weights, weights)):
                mine |= {name: mine.get(name, 0.0) + value for name, value in theirs.items()}
            whole.largest |= {name: max(value, whole.largest.get(name, value)) for name, value in largest.items()}
        return whole

    def result(self) -> dict[str, float]:
        """The means, the largest values, and the mean gradient norm."""
        means = {name: total / max(self.weights[name], 1e-12) for name, total in self.sums.items()}
        norms = {"grad_norm": float(torch.stack(self.gradient_norms).mean())} if self.gradient_norms else {}
        return means | self.largest | norms
