"""Evaluation without training: the same answers as training starts from, no step, the policy as it came."""

import json

import torch
from safetensors.torch import load_file

from rlhf_core.trainer import Trainer


def test_nothing_is_trained(start, ppo, checkpoints):
    words = [word for word in ppo("llama") if not word.startswith("algorithm.batch_size")]
    started = start(*words, "algorithm=evaluate", "evaluator=[win_rate]")
    trainer = Trainer(started.run, started.algorithm)
    metrics = trainer.fit()
    assert trainer.step == trainer.total == 0
    assert metrics["win_rate"] == 0.5 and metrics["reward"] == metrics["reward_start"]
    assert "kl" not in metrics and 0 < metrics["length"] <= 8
    rows = [json.loads(line) for line in (started.run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["phase"]) for row in rows] == [(0, "eval")]
    shown = [json.loads(line) for line in (started.run.folder / "samples.jsonl").read_text().splitlines()]
    assert len(shown) == 4 and all(not any(row["kl"]) for row in shown)
    started.algorithm.save(started.run.folder / "result")
    kept = load_file(started.run.folder / "result" / "model.safetensors")
    for name, tensor in load_file(checkpoints["llama"] / "model.safetensors").items():
        assert torch.equal(kept[name], tensor), name
    assert "win_rate 0.5" in started.algorithm.headline(metrics)


def test_no_reward_is_needed(start, checkpoints):
    started = start("algorithm=evaluate", "policy=hf", f"policy.path={checkpoints['llama']}",
                    "algorithm.eval_prompts=3", "rollout.max_new_tokens=4")  # fmt: skip
    assert set(started.algorithm.evaluate(0)) == {"length", "eos_frac"}


def test_evaluators_that_nobody_asks_are_told_of(rlhf, data, checkpoints, tmp_path):
    words = ["train", *data, "policy=hf", f"policy.path={checkpoints['llama']}", "evaluator=[win_rate,perplexity]"]
    told = "evaluator: win_rate, perplexity measured nothing: algorithm=sft asks no evaluators"
    done = rlhf(tmp_path, *words, "algorithm=sft", "trainer.max_steps=1")
    assert (done.returncode, told in done.stdout.splitlines()) == (0, True)
    done = rlhf(tmp_path, *words, "algorithm=evaluate", "algorithm.eval_prompts=3", "rollout.max_new_tokens=4")
    assert (done.returncode, "asks no evaluators" in done.stdout) == (0, False)
