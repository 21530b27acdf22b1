"""What a user gets wrong about runs, models and devices, as the command says it: one line, and no traceback."""

import shutil

import pytest


@pytest.fixture
def sft(data, checkpoints):
    policy = ["policy=hf", f"policy.path={checkpoints['llama']}"]
    return [*data, *policy, "algorithm=sft", "trainer.max_steps=1", "threads=1"]


@pytest.fixture
def refused(rlhf, tmp_path):
    """Run a command that fails; gives its one line, without what is before the key."""

    def refused(*words):
        run = rlhf(tmp_path, *words)
        assert run.returncode == 1, run.stderr
        assert run.stderr.startswith("error: ") and run.stderr.endswith("\n")
        assert run.stderr.count("\n") == 1, run.stderr
        assert "Traceback" not in run.stdout + run.stderr
        return run.stderr.removeprefix("error: ").rstrip("\n")

    return refused


def test_a_folder_that_holds_a_run(rlhf, refused, sft, tmp_path):
    done = rlhf(tmp_path, "train", *sft, "run_dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    folder = tmp_path / "run"
    assert refused("train", *sft, "run_dir=run") == (
        f"run_dir: {folder} holds a run already; go on with it by resume={folder}, or choose another run_dir"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before

    # What else can be got wrong about this run.
    assert refused("train", *sft, f"policy.path={folder}", "run_dir=other") == (
        f"policy.path: cannot load '{folder}': that is a run folder; the checkpoint is {folder}/result"
    )
    assert not (tmp_path / "other" / "summary.json").exists()
    learned = [*sft, "algorithm=ppo", "reward=learned", "run_dir=third"]
    assert refused("train", *learned, f"reward.path={folder}").startswith(
        f"reward.path: no reward model in '{folder}'; the checkpoint is {folder}/result"
    )
    assert refused("train", *learned, f"reward.path={folder / 'result'}") == (
        f"reward.path: '{folder / 'result'}' holds LlamaForCausalLM, expected a reward_model stage's result"
    )


@pytest.mark.parametrize("spoiled", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_corrupt_reward_model(refused, sft, reward_checkpoint, tmp_path, spoiled):
    broken = tmp_path / "broken"
    shutil.copytree(reward_checkpoint, broken)
    (broken / spoiled).write_bytes((broken / spoiled).read_bytes()[:200])
    line = refused("train", *sft, "algorithm=ppo", "reward=learned", f"reward.path={broken}")
    assert line.startswith(f"reward.path: no reward model in '{broken}'")


@pytest.mark.parametrize("spoiled", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_corrupt_policy(refused, sft, checkpoints, tmp_path, spoiled):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["llama"], broken)
    (broken / spoiled).write_bytes((broken / spoiled).read_bytes()[:200])
    assert refused("train", *sft, f"policy.path={broken}").startswith(f"policy.path: cannot load '{broken}': ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["algorithm=ppo", "reward=learned", "reward.path=nowhere"], "reward.path: no reward model in 'nowhere'"),
        (["algorithm=ppo", "reward=learned"], "reward.path: required; give it as reward.path=VALUE"),
        (["algorithm=ppo", "algorithm.batch_size=8"], "reward: null, but this algorithm scores"),
        (["policy.path=nowhere"], "policy.path: cannot load 'nowhere': there is no such folder, and"),
        (["device=warp"], "device: 'warp' cannot be used here ("),
        (["device=cuda:99"], "device: 'cuda:99' cannot be used here ("),
        (["kernels.backend=fortran"], "no backend 'fortran'; there are auto, cuda, triton, cpu, eager"),
    ],
)
def test_what_is_not_there(refused, sft, words, line):
    assert refused("train", *sft, *words, "run_dir=run").startswith(line)
