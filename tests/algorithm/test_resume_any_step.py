"""CORRECTNESS 29: stopped after any step and resumed, a run's weights and metrics are those of one never stopped."""

import shutil

import pytest
import torch

from rlhf_core.trainer import Trainer

STEPS = 3
FAST = ["algorithm.optimizer.lr=3e-3", f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=9"]  # fmt: skip
ON_POLICY = {
    "ppo": ["algorithm.kl_target=1", "algorithm.kl_horizon=50", "algorithm.ptx_coef=0.5", "algorithm.ptx_batch=4"],
    "reinforce": ["algorithm.baseline=moving"],
    "dapo": ["algorithm.responses=2", "algorithm.batch_size=4", "algorithm.kl_target=1"],
}
OFFLINE = ["sft", "reward_model", "dpo", "kto"]


@pytest.fixture
def words(ppo, checkpoints):
    def of(name):
        if name in ON_POLICY:
            return [*ppo("llama"), f"algorithm={name}", *ON_POLICY[name], *FAST]
        kind = "gpt2" if name in ("sft", "reward_model") else "llama"  # GPT-2's dropout draws numbers
        return [f"algorithm={name}", "policy=hf", f"policy.path={checkpoints[kind]}", "algorithm.batch_size=4",
                "rollout=null", "seed=3", *FAST]  # fmt: skip

    return of


@pytest.mark.parametrize("name", [*ON_POLICY, *OFFLINE])
def test_after_any_step(start, words, tmp_path, name):
    folder = tmp_path / "run"

    def trainer(resume):
        started = start(*words(name))
        started.run.resume = resume
        return Trainer(started.run, started.algorithm)

    def kept(made):
        return {key: tensor.clone() for key, tensor in made.module.state_dict().items()}

    whole = trainer(resume=False)
    whole.fit()
    weights, rows = kept(whole), (folder / "metrics.jsonl").read_text()
    shutil.copytree(folder / "checkpoints", tmp_path / "all")
    assert len(list((tmp_path / "all").iterdir())) == STEPS
    for stopped in range(1, STEPS):
        for number in range(stopped + 1, STEPS + 1):
            shutil.rmtree(folder / "checkpoints" / f"step_{number:06d}", ignore_errors=True)
        resumed = trainer(resume=True)
        assert resumed.step == stopped
        torch.manual_seed(12345)  # what came between the two must not matter
        resumed.restore()
        resumed.fit()
        assert (folder / "metrics.jsonl").read_text() == rows
        found = kept(resumed)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())
