"""CORRECTNESS 29: a run killed at any moment and resumed writes what the run never stopped wrote, character for character."""

import json
from pathlib import Path

import pytest

MODEL = ["policy=hf", "device=cpu", "threads=1", "seed=3", "trainer.checkpoint_every=2"]
EVERYWHERE = ["trainer.microbatch_tokens=200"]

KILL_AT_LINE = """
import signal
from rlhf_core.jsonl import JsonLines
append = JsonLines.append
def dying(self, row):
    append(self, row)
    if self.path.name == "metrics.jsonl" and (row["step"], row["phase"]) == ({step}, "{phase}"):
        os.kill(os.getpid(), signal.SIGKILL)
JsonLines.append = dying
"""

KILL_BEFORE_UPDATE = """
import signal
from rlhf_plugins.algorithm.ppo import PPO
minibatches = PPO.minibatches
def dying(self, batch):
    if batch.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return minibatches(self, batch)
PPO.minibatches = dying
"""

KILL_IN_A_CHECKPOINT = """
import signal
import torch
save = torch.save
def dying(state, path):
    save(state, path)
    if state["step"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = dying
"""


@pytest.fixture
def stages(data, ppo, checkpoints):
    llama, gpt2 = ([*data, *MODEL, f"policy.path={checkpoints[kind]}"] for kind in ("llama", "gpt2"))
    return {
        "sft": [*gpt2, "algorithm=sft", "algorithm.epochs=1", "algorithm.batch_size=6", "trainer.eval_every=3"],  # dropout
        "reward_model": [*llama, "algorithm=reward_model", "algorithm.batch_size=6", "evaluator=[ranking_accuracy]"],
        "ppo": [*data, *MODEL, *ppo("llama", "algorithm.steps=6", "algorithm.kl_target=1", "algorithm.kl_horizon=50",
                "algorithm.ptx_coef=0.5", "algorithm.ptx_batch=4", "evaluator=[win_rate]", "trainer.eval_every=3",
                "algorithm.optimizer.lr=3e-3")],
    }  # fmt: skip


def written(folder: Path) -> dict[str, list[str]]:
    return {name: (folder / name).read_text().splitlines() for name in ("metrics.jsonl", "samples.jsonl")}


@pytest.fixture
def finish(rlhf, tmp_path):
    """Run a stage without a stop; and run it with one, then resume it. Gives both folders."""

    def finish(words, before):
        whole = rlhf("train", *words, "run_dir=whole")
        assert (whole.returncode, whole.stderr) == (0, "")
        killed = rlhf("train", *words, "run_dir=killed", before=before)
        assert killed.returncode == -9
        assert not (tmp_path / "killed" / "summary.json").exists()
        at = written(tmp_path / "killed")["metrics.jsonl"]
        assert len(at) < len(written(tmp_path / "whole")["metrics.jsonl"])
        resumed = rlhf("train", "resume=killed")
        assert (resumed.returncode, resumed.stderr) == (0, "")
        return tmp_path / "whole", tmp_path / "killed"

    return finish


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        ("sft", KILL_AT_LINE.format(step=4, phase="train")),  # before the checkpoint of its step
        ("reward_model", KILL_AT_LINE.format(step=3, phase="train")),
        ("ppo", KILL_AT_LINE.format(step=3, phase="eval")),
        ("ppo", KILL_BEFORE_UPDATE),
        ("ppo", KILL_IN_A_CHECKPOINT),
        ("sft", KILL_AT_LINE.format(step=0, phase="eval")),  # before any checkpoint
    ],
    ids=["sft", "reward model", "ppo", "ppo between rollout and update", "ppo in a checkpoint", "sft at once"],
)
def test_a_killed_run_goes_on_as_if_never_stopped(finish, stages, stage, before):
    whole, killed = finish(stages[stage], before)
    assert written(whole) == written(killed)
    steps = [json.loads(line)["step"] for line in written(killed)["metrics.jsonl"]]
    assert steps == sorted(steps) and len(set(steps)) == steps[-1] + 1
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["headline"] == summaries[1]["headline"]
    results = [(folder / "result" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert results[0] == results[1]
    assert not list(killed.glob("**/*.partial"))
    assert (killed / "config.yaml").read_text().replace("/killed", "/whole") == (whole / "config.yaml").read_text()


def test_a_finished_run_resumed_writes_nothing_new(rlhf, stages, tmp_path):
    words = [*stages["sft"], "trainer.max_steps=2", "run_dir=run"]
    assert rlhf("train", *words).returncode == 0
    before, summary = written(tmp_path / "run"), json.loads((tmp_path / "run" / "summary.json").read_text())
    again = rlhf("train", "resume=run")
    assert (again.returncode, again.stderr) == (0, "")
    assert written(tmp_path / "run") == before
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"] == summary["metrics"]


PIPELINE = """# @package _global_
name: small
stages:
  sft: [{sft}]
  reward_model: [{reward_model}]
  ppo: [{ppo}]
"""


def test_a_killed_pipeline_goes_on_in_the_stage_it_was_in(rlhf, stages, tmp_path):
    learned = ["reward=learned", "reward.path=${stage:reward_model}", "algorithm.critic_path=${stage:reward_model}"]
    ppo = [word for word in stages["ppo"] if word != "reward=sentiment"]
    lists = {"sft": [*stages["sft"], "algorithm.epochs=0.5"], "reward_model": stages["reward_model"],
             "ppo": [*ppo, *learned, "algorithm.steps=2"]}  # fmt: skip
    preset = PIPELINE.format(**{name: ", ".join(json.dumps(word) for word in words) for name, words in lists.items()})
    (tmp_path / "mine" / "pipeline").mkdir(parents=True)
    (tmp_path / "mine" / "pipeline" / "small.yaml").write_text(preset)
    words = ("--config-dir", str(tmp_path / "mine"))
    killed = rlhf("pipeline", *words, "pipeline=small", "run_dir=p", before=KILL_AT_LINE.format(step=3, phase="train")
                  .replace('"metrics.jsonl"', '"metrics.jsonl" and self.path.parent.name == "reward_model"'))  # fmt: skip
    assert killed.returncode == -9
    status = json.loads((tmp_path / "p" / "pipeline.json").read_text())
    assert [stage["status"] for stage in status["stages"]] == ["done", "running", "pending"]
    sft = {path: path.stat().st_mtime_ns for path in (tmp_path / "p" / "sft").rglob("*") if path.is_file()}

    resumed = rlhf("pipeline", *words, "resume=p")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "sft: finished before" in resumed.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "p" / "sft").rglob("*") if path.is_file()} == sft
    status = json.loads((tmp_path / "p" / "pipeline.json").read_text())
    assert [stage["status"] for stage in status["stages"]] == ["done"] * 3
    assert [stage["folder"] for stage in status["stages"]] == ["sft", "reward_model", "ppo"]
    assert (tmp_path / "p" / "report.html").stat().st_size > 10_000

    alone = rlhf("train", *lists["reward_model"], "run_dir=alone", "seed=0")
    assert alone.returncode == 0
    stage = rlhf("train", "resume=alone")  # and each stage is what `rlhf train` would have made of it
    assert stage.returncode == 0
