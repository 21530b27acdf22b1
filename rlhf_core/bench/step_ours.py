"""Our side of ``rlhf bench step peer=…``: ``rlhf train algorithm=grpo``."""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .. import kernels, precision
from .step_side import Job, Setting, Turns
from .step_trainer import trainer_of
from .step_world import World


def run(connection: Connection, setting: Setting, job: Job) -> None:
    """Steps, each when its turn comes."""
    place = job.folder / setting.name
    place.mkdir()
    own = [f"precision={setting.precision}", f"device={job.device}", f"threads={job.threads}"]
    trainer = trainer_of(place, [*overrides(job.world, job.folder), *own])

    def facts() -> dict[str, Any]:
        used = precision.describe(trainer.module)["used"]
        return {"computes in": used, "arithmetic": trainer.algorithm.arithmetic(), "kernels": kernels.used()}

    turns = Turns(connection, job, facts)
    trainer.run.settings.reward = turns.work
    for _ in range(job.steps):
        turns.begin()
        trainer.train_step()
        trainer.step += 1
        turns.end()
    turns.finish()


def overrides(world: World, folder: Path) -> list[str]:
    """The work in our words."""
    return [
        "algorithm=grpo", f"algorithm.batch_size={world.prompts}", f"algorithm.responses={world.responses}",
        f"algorithm.kl_coef={world.kl_coef}", f"algorithm.optimizer.lr={world.lr}", "algorithm.aggregate=sequence",
        "algorithm.epochs=1", "algorithm.minibatches_a_pass=1",
        "algorithm.eval_split=train", "algorithm.eval_prompts=1",
        "policy=hf", f"policy.path={folder / 'model'}",
        "data=jsonl", f"data.prompt_files=[{folder / 'prompts.jsonl'}]", "data.chat=false",
        "data.validation_fraction=0", "data.test_fraction=0",
        f"rollout.max_new_tokens={world.new_tokens}", f"rollout.temperature={world.temperature}",
    ]  # fmt: skip
