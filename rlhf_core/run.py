"""One stage: its folder, its plugins, and what is written down about both."""

import json
import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from . import kernels, precision, ranks
from .checkpoint import naming_a_full_disk
from .contracts import refuse_incomplete
from .contracts.algorithm import Algorithm
from .contracts.data import Data
from .contracts.evaluator import Evaluator
from .contracts.policy import Policy
from .contracts.reward import Reward
from .contracts.rollout import RolloutEngine
from .contracts.tracker import Tracker
from .environment import describe
from .errors import UserError
from .hydra_glue import Composed
from .plugins import KINDS, SEVERAL, provenance
from .settings import TrainSettings
from .trainer import Trainer

log = logging.getLogger("rlhf")


@dataclass
class Run:
    """What the plugins of one stage share."""

    settings: TrainSettings
    folder: Path
    device: torch.device
    resume: bool = False
    step: int = 0
    """training steps done so far, for whatever follows a schedule"""
    asked: bool = False
    """whether the algorithm has asked for the evaluators"""
    started: list[Tracker] = field(default_factory=list)
    """the trackers that are to be closed"""

    @property
    def name(self) -> str:
        """What the stage is called: its folder."""
        return self.folder.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.settings.seed

    @property
    def policy(self) -> Policy:
        """The policy plugin."""
        policy: Policy = self.settings.policy
        return policy

    @property
    def data(self) -> Data:
        """The data plugin, set up."""
        data: Data = self.settings.data
        return data

    @property
    def reward(self) -> Reward:
        """The reward plugin, set up."""
        reward: Reward | None = self.settings.reward
        if reward is None:
            raise UserError(
                "reward: null, but this algorithm scores what it samples; add e.g. reward=learned or reward=sentiment"
            )
        return reward

    @property
    def rollout(self) -> RolloutEngine:
        """The rollout plugin."""
        rollout: RolloutEngine | None = self.settings.rollout
        if rollout is None:
            raise UserError("rollout: null, but this algorithm samples; add e.g. rollout=transformers")
        return rollout

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """The evaluator plugins by name, set up; for algorithms, which ask them."""
        self.asked = True
        return self.settings.evaluator

    @property
    def trackers(self) -> dict[str, Tracker]:
        """The tracker plugins by name, started; one process of a run has them."""
        return self.settings.tracker if ranks.rank() == 0 else {}

    @property
    def microbatch_tokens(self) -> int:
        """How many tokens one forward and backward may hold."""
        return self.settings.trainer.microbatch_tokens

    def generator(self, *words: object) -> torch.Generator:
        """A generator on the CPU whose state follows from the run's seed and ``words`` alone."""
        return torch.Generator().manual_seed(random.Random(f"{self.seed}/{words}").getrandbits(63))


def train(composed: Composed[TrainSettings]) -> dict[str, Any]:
    """Run one stage to its end, or go on with one that was stopped; returns what summary.json says."""
    device = device_of(composed.settings.device)
    ranks.join(device)
    folder, resume = ranks.gather((composed.folder, composed.resume))[0]  # rank 0's: names hold the time
    if ranks.rank() == 0:
        claim(folder, resume)
    elif composed.folder != folder:
        with suppress(OSError):
            composed.folder.rmdir()
    with ranks.place(folder) as own:
        summary = train_in(composed, Run(composed.settings, own, device, resume))
    ranks.gather(None)  # what rank 0 writes is there for all
    return summary


def train_in(composed: Composed[TrainSettings], run: Run) -> dict[str, Any]:
    """``train`` in a folder that is claimed."""
    folder = run.folder
    handler = log_to(folder / "log.txt")
    try:
        prepare(run)
        write_provenance(composed, run)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        algorithm: Algorithm = run.settings.algorithm
        trainer = Trainer(run, algorithm)
        metrics = trainer.fit()
        tell_of_idle_evaluators(run, composed.choices["algorithm"])
        if ranks.rank() == 0:
            with naming_a_full_disk(folder):
                algorithm.save(folder / "result")
        summary = {
            "algorithm": composed.choices["algorithm"],
            "started": started,
            "seconds": round(trainer.elapsed, 1),
            "headline": algorithm.headline(metrics),
            "metrics": metrics,
        }
        # Again: by now it is known which kernel each op used, and in what the model was computed.
        write_json(folder / "env.json", environment(run, trainer.module))
        write_json(folder / "summary.json", summary)
        return summary
    finally:
        for tracker in run.started:
            tracker.close()
        logging.getLogger().removeHandler(handler)
        handler.close()


def tell_of_idle_evaluators(run: Run, algorithm: str) -> None:
    """Say where evaluators were chosen that the algorithm never asked."""
    if run.settings.evaluator and not run.asked and ranks.rank() == 0:
        names = ", ".join(run.settings.evaluator)
        print(f"evaluator: {names} measured nothing: algorithm={algorithm} asks no evaluators", flush=True)


def claim(folder: Path, resume: bool) -> None:
    """Take the run folder, and nobody else's."""
    if not resume and (folder / "metrics.jsonl").exists():
        raise UserError(
            f"run_dir: {folder} holds a run already; go on with it by resume={folder}, or choose another run_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)


def prepare(run: Run) -> None:
    """Threads, seeds and kernels, then the plugins that need setting up."""
    settings = run.settings
    for kind, plugin in chosen(settings):
        refuse_incomplete(kind, plugin)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    random.seed(run.seed)
    np.random.seed(run.seed % 2**32)
    torch.manual_seed(run.seed)
    precision.choose(settings.precision)
    kernels.set_backend(settings.kernels.backend, per_op=settings.kernels.ops)
    run.data.setup(run.seed)
    if settings.reward is not None:
        settings.reward.setup(run)
    for evaluator in run.settings.evaluator.values():
        evaluator.setup(run)
    for tracker in run.trackers.values():
        tracker.start(run.folder)
        run.started.append(tracker)


def chosen(settings: TrainSettings) -> Iterator[tuple[str, Any]]:
    """Kind and plugin of all that are chosen."""
    for kind in KINDS:
        found = getattr(settings, kind)
        if found is not None:
            yield from ((kind, plugin) for plugin in (found.values() if kind in SEVERAL else (found,)))


def write_provenance(composed: Composed[TrainSettings], run: Run) -> None:
    """config.yaml, overrides.txt, plugins.json and env.json: what this run is made of."""
    folder = run.folder
    if not run.resume or not (folder / "config.yaml").exists():
        (folder / "overrides.txt").write_text("".join(line + "\n" for line in composed.overrides))
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(composed.config))
    write_json(folder / "plugins.json", provenance(composed.choices))
    write_json(folder / "env.json", environment(run))


def environment(run: Run, model: torch.nn.Module | None = None) -> dict[str, Any]:
    """What the run runs on."""
    return describe(run, model) | {"processes": ranks.count()}


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def device_of(name: str) -> torch.device:
    """The device a config names; ``auto`` is a GPU where there is one, and each process has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = ranks.local(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try device=auto"
        ) from error
    return device


def log_to(path: Path) -> logging.Handler:
    """Send the log to a file of the run as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("rlhf").setLevel(logging.INFO)
    logging.getLogger("rlhf_core").setLevel(logging.INFO)
    return handler
