"""TRL's side of ``rlhf bench step peer=trl``: its GRPOTrainer as it trains, by TRL 1.16. Importing this imports TRL."""

from multiprocessing.connection import Connection
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found, import-untyped, unused-ignore]

from .step_side import Job, Setting, Turns


def run(connection: Connection, setting: Setting, job: Job) -> None:
    """Steps, each when its turn comes."""
    turns = Turns(connection, job)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.folder / "model", dtype=torch.float32),
        reward_funcs=turns.work,
        args=config(setting, job),
        train_dataset=Dataset.from_dict({"prompt": job.world.texts()}),
        processing_class=AutoTokenizer.from_pretrained(job.folder / "model"),
        callbacks=[Waiting(turns)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    turns.finish()


class Waiting(TrainerCallback):
    """Takes turns around the trainer's steps: sampling, rewards, gradients, the optimiser; the prompts are at hand."""

    def __init__(self, turns: Turns) -> None:
        """Around which steps."""
        self.turns = turns

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait."""
        self.turns.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Done."""
        self.turns.end()


def config(setting: Setting, job: Job) -> Any:
    """The work in TRL's words, nothing saved or logged, and nothing computed twice to save memory."""
    world = job.world
    return GRPOConfig(
        output_dir=str(job.folder / f"trl {setting.name}"),
        max_steps=job.steps,
        per_device_train_batch_size=world.batch // setting.accumulate,
        gradient_accumulation_steps=setting.accumulate,
        num_generations=world.responses,
        max_completion_length=world.new_tokens,
        temperature=world.temperature,
        beta=world.kl_coef,
        loss_type="grpo",
        learning_rate=world.lr,
        bf16=setting.precision == "bf16",
        use_cpu=job.device.type == "cpu",
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
