"""``rlhf bench step``: where the time of a whole RL step goes.

It is the real thing: ``rlhf train``'s own trainer and algorithm, composed from overrides as ever, on made-up text and a
small policy with random weights unless the overrides choose others. Its functions are timed from outside.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import kernels, sampling
from . import step_peer
from .arguments import count
from .machine import describe
from .phases import Phases
from .shown import significant
from .step_trainer import trainer_of

KEYS = ("steps", "warmup", "out")


def main(words: Sequence[str]) -> int:
    """``rlhf bench step [steps=5] [warmup=1] [out=FILE.json] [override …]``; with ``peer=``, ``step_peer.py``'s."""
    words = step_peer.spelled(words)
    if any(word.partition("=")[0] == "peer" for word in words):
        return step_peer.main(words)
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in KEYS}
    overrides = [word for word in words if word.partition("=")[0] not in KEYS]
    steps, warmup = count(own, "steps", 5), count(own, "warmup", 1)
    with tempfile.TemporaryDirectory(prefix="rlhf-bench-") as folder:
        found = profile(Path(folder), overrides, steps, warmup)
    print("\n".join(table(found)))
    if "out" in own:
        Path(own["out"]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {own['out']}")
    return 0


def profile(folder: Path, overrides: Sequence[str], steps: int, warmup: int) -> dict[str, Any]:
    """Run the steps and say what they took: milliseconds and calls a step by phase."""
    trainer = trainer_of(folder, overrides)
    run, algorithm = trainer.run, trainer.algorithm
    phases = Phases(run.device)
    watched = (
        (run.rollout, "generate", "rollout"),
        (sampling, "score_with_parts", "reward"),
        (getattr(algorithm, "reference", None), "logprobs", "log-probs of the reference"),
        (getattr(algorithm, "policy", None), "logprobs_and_entropy", "log-probs of the policy"),
        (getattr(algorithm, "policy", None), "logprobs", "log-probs of the policy"),
        (getattr(algorithm, "critic", None), "forward", "values"),
        (kernels, "shaped_gae", "GAE"),
        (kernels, "ppo_loss", "loss"),
        (kernels, "grpo_loss", "loss"),
        (torch.Tensor, "backward", "backward"),
        (trainer, "clip_gradients", "optimiser"),
        (trainer.optimizer, "step", "optimiser"),
        (trainer.optimizer, "zero_grad", "optimiser"),
    )
    taken: list[float] = []
    with phases.watching((trainer, "train_step", "other"), *watched):
        for number in range(warmup + steps):
            if number == warmup:
                phases.reset()
            start = time.perf_counter()
            trainer.train_step()
            trainer.step += 1
            taken.append(time.perf_counter() - start)
    return {
        "machine": describe(run.device),
        "overrides": list(overrides),
        "arithmetic": algorithm.arithmetic(),
        "steps": steps,
        "step_ms": [1e3 * seconds for seconds in taken[warmup:]],
        "phases": [
            {"phase": name, "ms": 1e3 * seconds / steps, "calls": phases.calls[name] / steps}
            for name, seconds in phases.seconds.items()
        ],
        "kernels": kernels.used(),
    }


def table(found: dict[str, Any]) -> list[str]:
    """Phase, calls, milliseconds and share, the largest first."""
    machine, total = found["machine"], sum(phase["ms"] for phase in found["phases"])
    lines = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}",
        found["arithmetic"],
        f"\n{'phase':28}{'calls a step':>14}{'ms a step':>12}{'share':>9}",
    ]
    for phase in sorted(found["phases"], key=lambda phase: -phase["ms"]):
        share = 100 * phase["ms"] / total
        lines.append(f"{phase['phase']:28}{phase['calls']:>14g}{significant(phase['ms']):>12}{share:>7.1f} %")
    lines.append(f"{'a whole step':28}{'':14}{significant(total):>12}")
    backends = ", ".join(f"{op} on {used['backend']}" for op, used in found["kernels"].items())
    return [*lines, f"\nkernels: {backends}"]
