"""Sweeps over plugins of several packages in workers: of joblib, of submitit, and in a spawned process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_core.errors import UserError
from rlhf_core.hydra_glue import objective

from ..installing import pip

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

SPAWNED = """
import multiprocessing, pickle, sys
from pathlib import Path

def compose(overrides):
    from rlhf_core.hydra_glue import compose_train
    return compose_train(overrides, Path("run"))

def work(overrides, sent, queue):
    # it composes by itself, as workers of joblib and submitit do, and knows what it was sent, as those of ray
    from omegaconf import OmegaConf
    from rlhf_core import plugins
    names = [plugins.loaded(OmegaConf.get_type(pickle.loads(sent)[kind])).name for kind in ("reward", "algorithm")]
    settings = compose(overrides).settings
    queue.put((names, settings.reward.scale, type(settings.algorithm).__module__))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    sent = pickle.dumps(compose(sys.argv[1:]).config)
    process = context.Process(target=work, args=(sys.argv[1:], sent, queue))
    process.start()
    print(queue.get(timeout=60))
    process.join()
"""


@pytest.fixture(scope="module")
def both(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Where two strangers' packages are installed: one by wheel, one from its source folder."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("example")
    source = tmp_path_factory.mktemp("source") / "reinforce_baseline"
    source.mkdir()
    for name in ("pyproject.toml", "reinforce_baseline.py"):
        (source / name).write_text((EXAMPLES / "reinforce_baseline" / name).read_text())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", wheels, source], check=True)
    pip("--target", target, *wheels.glob("*.whl"))
    return (site, target)


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
    ],
    ids=["joblib", "submitit"],
)
def test_workers_find_the_plugins(rlhf, both, data, ppo, tmp_path, launcher):
    words = [word for word in ppo() if not word.startswith(("reward", "algorithm=", "algorithm.eval"))]
    done = rlhf(
        "train", "-m", *launcher, *data, *words, "algorithm=reinforce_baseline,reinforce", "reward=length",
        "trainer.max_steps=1", "threads=1", "run_dir=sweep", path=both,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen = [json.loads((tmp_path / "sweep" / job / "plugins.json").read_text()) for job in ("0", "1")]
    assert [row["distribution"] for rows in chosen for row in rows if row["kind"] == "algorithm"] == [
        "reinforce-baseline",
        "rlhf-core",
    ]
    assert all((tmp_path / "sweep" / job / "result" / "model.safetensors").exists() for job in ("0", "1"))


def test_a_failed_job_of_a_worker_is_told(rlhf, both, data, tmp_path):
    done = rlhf(
        "train", "-m", "hydra/launcher=joblib", *data, "algorithm=reinforce_baseline", "reward=null",
        "policy.vocabulary=300", "run_dir=sweep", path=both,
    )  # fmt: skip
    assert done.returncode == 1
    assert "reward: null, but this algorithm scores what it samples" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_spawned_process_finds_them(both, tmp_path, data):
    script = tmp_path / "main.py"
    script.write_text(SPAWNED)
    words = ["reward=thirdparty", "reward.scale=3", "algorithm=reinforce_baseline", "policy.path=x"]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(map(str, both))}
    done = subprocess.run(
        [sys.executable, script, *data, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.strip() == "(['thirdparty', 'reinforce_baseline'], 3.0, 'reinforce_baseline')", done.stderr


def test_what_a_sweeper_is_told():
    summary = {"headline": "", "metrics": {"win_rate": 0.75, "kl": 2.0}}
    assert objective(summary, "win_rate") == 0.75
    assert objective(summary, None) is summary
    with pytest.raises(UserError, match=r"winrate was not measured; there are kl, win_rate. Did you mean win_r"):
        objective(summary, "winrate")
