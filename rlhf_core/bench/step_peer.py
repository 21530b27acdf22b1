"""``rlhf bench step --peer trl``: whole RL steps of ours and of TRL's at equal work, by turns, in one run.

Both read one checkpoint and one list of prompts, sample, score by one reward, and take one optimiser step of GRPO.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..environment import installed
from ..errors import UserError
from .arguments import count, one_of, pairs
from .machine import describe, device_named
from .step_side import Job, Setting, Side
from .step_table import equal, ratios, row, table
from .step_world import World

PEERS = ("trl",)
SIZES = tuple(field.name for field in fields(World) if field.type is int)
KEYS = ("peer", "steps", "warmup", "out", "device", "threads", *SIZES)
PACKAGES = ("transformers", "tokenizers", "accelerate", "datasets")


def spelled(words: Sequence[str]) -> list[str]:
    """``--peer trl`` and ``--peer=trl`` as ``peer=trl``."""
    rest, found = iter(words), []
    for word in rest:
        is_flag = word.startswith("--peer=")
        found.append(f"peer={next(rest, '')}" if word == "--peer" else word[2:] if is_flag else word)
    return found


def main(words: Sequence[str]) -> int:
    """``rlhf bench step peer=trl [steps=5] [warmup=1] [out=FILE.json] [device=…] [threads=…] [hidden=256 …]``.

    Returns:
        1 where the sides' work was not equal.
    """
    asked = pairs("bench step peer=…", words, KEYS)
    peer = one_of(asked, "peer", PEERS, PEERS[0])
    if not find_spec(peer):
        raise UserError(f"peer={peer}: the package {peer} is not installed here; pip install {peer}")
    world = World(**{key: count(asked, key, getattr(World, key)) for key in SIZES}).checked()
    steps, warmup = count(asked, "steps", 5), count(asked, "warmup", 1)
    device, threads = device_named(asked.get("device", "auto")), count(asked, "threads", torch.get_num_threads())
    found = compare(settings(world, peer), world, device, threads, steps, warmup)
    print("\n".join(table(found)))
    if "out" in asked:
        Path(asked["out"]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {asked['out']}")
    return 0 if found["equal_work"] else 1


def settings(world: World, peer: str) -> list[Setting]:
    """Ours in both precisions; the peer's in both, each with all responses at once and a quarter at a time."""
    parts = (1, 4) if world.batch % 4 == 0 else (1,)
    ours = [Setting("ours", choice) for choice in ("auto", "float32")]
    return ours + [Setting(peer, choice, accumulate) for choice in ("bf16", "float32") for accumulate in parts]


def compare(
    chosen: Sequence[Setting], world: World, device: torch.device, threads: int, steps: int, warmup: int
) -> dict[str, Any]:
    """Set the sides up, have them take turns, and say what their steps took."""
    with tempfile.TemporaryDirectory(prefix="rlhf-bench-") as name, ExitStack() as stack:
        world.write(Path(name))
        job, sides = Job(world, Path(name), device, threads, warmup + steps), list[Side]()
        for setting in chosen:
            sides.append(Side(setting, job))
            stack.callback(sides[-1].close)
        take_turns(sides, steps, warmup)
    machine = describe(device) | {"threads": threads}
    machine["versions"] |= {package: installed(package) for package in PACKAGES}
    rows = [row(side.setting, side.step_ms, side.lengths, side.facts) for side in sides]
    return {
        "machine": machine,
        "world": asdict(world),
        "parameters": sum(parameter.numel() for parameter in world.model().parameters()),
        "steps": steps,
        "warmup": warmup,
        "sides": rows,
        "ratios": ratios(rows),
        "equal_work": equal(rows, world.batch * steps),
    }


def take_turns(sides: Sequence[Side], steps: int, warmup: int) -> None:
    """A step of each side a round, each round in another order."""
    for number in range(warmup + steps):
        if number == warmup:
            for side in sides:
                side.forget()
        for side in random.Random(number).sample(sides, len(sides)):
            side.step()
