"""``rlhf train``'s own trainer, composed from overrides, on made-up text where these name no data."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..hydra_glue import compose_train
from ..run import Run, device_of, prepare
from ..trainer import Trainer

WORDS = ("film", "story", "cast", "music", "ending", "plot", "book", "song"), ("good", "warm", "dull", "slow", "bright")
DEFAULTS = ("algorithm=ppo", "policy=tiny", "data=jsonl", "reward=length", "rollout=transformers", "device=auto")


def trainer_of(folder: Path, overrides: Sequence[str]) -> Trainer:
    """A trainer set up from overrides, with made-up data and a new policy where these name none."""
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    defaults = [word for word in DEFAULTS if word.partition("=")[0] not in given]
    if "data" not in given:
        defaults += write_data(folder)
    if not given & {"algorithm", "algorithm.eval_prompts"}:
        defaults.append("algorithm.eval_prompts=4")  # held-out prompts are answered before the first step
    composed = compose_train([*defaults, *overrides], folder / "run")
    policy, data = composed.settings.policy, composed.settings.data
    if getattr(policy, "path", "") is None:  # critic and reference start from a checkpoint, as in a pipeline
        torch.manual_seed(composed.settings.seed)
        data.setup(composed.settings.seed)
        policy.language_model(data).save(folder / "policy")
        composed = compose_train([*defaults, *overrides, f"policy.path={folder / 'policy'}"], folder / "run")
    run = Run(composed.settings, folder / "run", device_of(composed.settings.device))
    run.folder.mkdir()
    prepare(run)
    return Trainer(run, run.settings.algorithm)


def write_data(folder: Path) -> list[str]:
    """Text, prompts, demonstrations and rankings of a small world, as files; returns the overrides that choose them."""
    things, looks = WORDS
    pairs = [(f"{a} of the {b}", f"{x} and {y}") for a, b in product(things, things) for x, y in product(looks, looks)]
    rows: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": f"the {what} was {how}"} for what, how in pairs],
        "prompt": [{"prompt": f"what of the {what}, which was {how}"} for what, how in pairs],
        "demonstration": [{"prompt": f"say of the {what}", "response": f"it was {how}"} for what, how in pairs[::5]],
        "ranking": [
            {"prompt": f"judge the {what}", "chosen": how, "rejected": "dull and bad"} for what, how in pairs[::5]
        ],
    }
    for view, content in rows.items():
        (folder / f"{view}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return [f"data.{view}_files=[{folder / f'{view}.jsonl'}]" for view in rows]
