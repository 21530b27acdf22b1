"""CORRECTNESS 29: what a run killed at any moment and resumed writes is what one never stopped wrote."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

MODEL = ["policy=hf", "device=cpu", "threads=1", "seed=3", "trainer.checkpoint_every=2"]

KILL_AT_LINE = 'kill_when(lambda row, _: (row["step"], row["phase"]) == ({step}, "{phase}"))'

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


@pytest.fixture(scope="module")
def stages(data, ppo, grpo, checkpoints):
    llama, gpt2 = ([*data, *MODEL, f"policy.path={checkpoints[kind]}"] for kind in ("llama", "gpt2"))
    return {
        "sft": [*gpt2, "algorithm=sft", "algorithm.batch_size=6", "trainer.eval_every=3"],  # dropout draws numbers
        "reward_model": [*llama, "algorithm=reward_model", "algorithm.batch_size=6", "evaluator=[ranking_accuracy]"],
        "ppo": [*data, *MODEL, *ppo("llama", "algorithm.steps=6", "algorithm.kl_target=1", "algorithm.kl_horizon=50",
                "algorithm.ptx_coef=0.5", "algorithm.ptx_batch=4", "evaluator=[win_rate]", "trainer.eval_every=3",
                "algorithm.optimizer.lr=3e-3")],
        "grpo": [*data, *MODEL, *grpo("llama", "algorithm.steps=6", "algorithm.epochs=2",
                 "algorithm.minibatches_a_pass=2", "algorithm.optimizer.lr=3e-3", "rollout.batch_size=6")],
    }  # fmt: skip


def written(folder: Path) -> dict[str, list[str]]:
    files = {name: folder / name for name in ("metrics.jsonl", "samples.jsonl")}
    return {name: path.read_text().splitlines() if path.exists() else [] for name, path in files.items()}


@pytest.fixture(scope="module")
def unbroken(rlhf, stages, tmp_path_factory):
    """The folder of a stage that was never stopped; made once."""
    made = {}

    def folder(stage: str) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp("unbroken") / "run"
            run = rlhf(made[stage].parent, "train", *stages[stage], "run_dir=run")
            assert (run.returncode, run.stderr) == (0, "")
        return made[stage]

    return folder


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        ("sft", KILL_AT_LINE.format(step=4, phase="train")),  # before the checkpoint of its step
        ("reward_model", KILL_AT_LINE.format(step=3, phase="train")),
        ("ppo", KILL_AT_LINE.format(step=3, phase="eval")),
        ("ppo", KILL_BEFORE_UPDATE),
        ("ppo", KILL_IN_A_CHECKPOINT),
        ("grpo", KILL_AT_LINE.format(step=3, phase="train")),
        ("sft", KILL_AT_LINE.format(step=0, phase="eval")),  # before any checkpoint
    ],
    ids=["sft", "reward model", "ppo", "ppo between rollout and update", "ppo in a checkpoint", "grpo", "sft at once"],
)
def test_a_killed_run_goes_on_as_if_never_stopped(rlhf, stages, unbroken, tmp_path, stage, before):
    whole, killed = unbroken(stage), tmp_path / "run"
    assert rlhf(tmp_path, "train", *stages[stage], "run_dir=run", before=before).returncode == -9
    assert not (killed / "summary.json").exists()
    assert len(written(killed)["metrics.jsonl"]) < len(written(whole)["metrics.jsonl"])
    resumed = rlhf(tmp_path, "train", "resume=run")
    assert (resumed.returncode, resumed.stderr) == (0, "")

    assert written(killed) == written(whole)
    steps = [json.loads(line)["step"] for line in written(killed)["metrics.jsonl"]]
    assert steps == sorted(steps) and len(set(steps)) == steps[-1] + 1 > 6
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (whole, killed))
    assert one | {"started": 0, "seconds": 0} == other | {"started": 0, "seconds": 0}
    one, other = ((folder / "result" / "model.safetensors").read_bytes() for folder in (whole, killed))
    assert one == other
    assert not list(killed.glob("**/*.partial"))


def test_a_finished_run_resumed_writes_nothing_new(rlhf, unbroken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken("sft"), run)
    before, summary = written(run), json.loads((run / "summary.json").read_text())
    again = rlhf(tmp_path, "train", "resume=run")
    assert (again.returncode, again.stderr) == (0, "")
    assert written(run) == before
    assert json.loads((run / "summary.json").read_text())["metrics"] == summary["metrics"]


PIPELINE = """# @package _global_
name: small
stages:
  sft: [{sft}]
  reward_model: [{reward_model}]
  ppo: [{ppo}]
"""


def test_a_killed_pipeline_goes_on_in_the_stage_it_was_in(rlhf, stages, tmp_path):
    learned = ["reward.path=${stage:reward_model}", "algorithm.critic_path=${stage:reward_model}"]
    lists = {
        "sft": [*stages["sft"], "trainer.max_steps=2"],
        "reward_model": stages["reward_model"],
        "ppo": [*stages["ppo"], *learned, "trainer.max_steps=2"],
    }
    preset = PIPELINE.format(**{name: ", ".join(json.dumps(word) for word in words) for name, words in lists.items()})
    (tmp_path / "mine" / "pipeline").mkdir(parents=True)
    (tmp_path / "mine" / "pipeline" / "small.yaml").write_text(preset)
    words = ("--config-dir", "mine", "pipeline=small")
    in_second = 'kill_when(lambda row, stage: (stage, row["step"], row["phase"]) == ("reward_model", 3, "train"))'
    assert rlhf(tmp_path, "pipeline", *words, "run_dir=p", before=in_second).returncode == -9
    pipeline = tmp_path / "p"

    def status(key):
        return [stage[key] for stage in json.loads((pipeline / "pipeline.json").read_text())["stages"]]

    def files():
        return {path: path.stat().st_mtime_ns for path in (pipeline / "sft").rglob("*") if path.is_file()}

    assert (status("name"), status("status")) == (list(lists), ["done", "running", "pending"])
    assert written(pipeline / "reward_model")["metrics.jsonl"][-1].startswith('{"step": 3, "phase": "train"')
    before = files()
    resumed = rlhf(tmp_path, "pipeline", "--config-dir", "mine", "resume=p")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "sft: finished before" in resumed.stdout
    assert files() == before
    assert status("status") == ["done"] * 3
    assert (pipeline / "report.html").stat().st_size > 10_000

    # The stage that was killed wrote what its own command, printed in pipeline.json, writes.
    command = shlex.split(status("command")[1])
    alone = rlhf(tmp_path, *command[1:-1], "run_dir=alone")
    assert (alone.returncode, alone.stderr) == (0, "")
    assert written(tmp_path / "alone") == written(pipeline / "reward_model")
