"""The run folder: whose it is, what is written in it, and the random numbers of a run."""

import json
import random

import numpy as np
import pytest
import torch

from rlhf_core.errors import UserError
from rlhf_core.hydra_glue import compose_train
from rlhf_core.run import claim, prepare, train, write_json


@pytest.fixture
def sft(data, checkpoints):
    policy = ["policy=hf", f"policy.path={checkpoints['llama']}"]
    return [*data, *policy, "algorithm=sft", "trainer.max_steps=1", "device=cpu", "seed=5"]


def test_a_run_says_what_it_is_made_of(sft, tmp_path):
    summary = train(compose_train(sft, tmp_path / "run"))
    folder = tmp_path / "run"
    assert (folder / "overrides.txt").read_text().splitlines() == sft
    plugins = json.loads((folder / "plugins.json").read_text())
    chosen = {(plugin["kind"], plugin["name"]) for plugin in plugins}
    assert chosen >= {("policy", "hf"), ("data", "jsonl"), ("algorithm", "sft")}
    env = json.loads((folder / "env.json").read_text())
    assert env["versions"]["torch"] == torch.__version__
    assert env["kernels"]["used"]["attention"]["backend"] in {"eager", "cpu"}
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["algorithm"] == "sft"
    assert summary["metrics"].keys() == {"loss", "perplexity"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step_000001"}


def test_composing_the_written_overrides_again_gives_the_written_config(sft, tmp_path):
    train(compose_train(sft, tmp_path / "run"))
    from omegaconf import OmegaConf

    again = compose_train((tmp_path / "run" / "overrides.txt").read_text().splitlines(), tmp_path / "run")
    assert OmegaConf.to_yaml(again.config) == (tmp_path / "run" / "config.yaml").read_text()


def test_a_folder_with_a_run_is_not_taken(tmp_path):
    claim(tmp_path / "run", resume=False)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"^run_dir: .* holds a run already; go on with it by resume="):
        claim(tmp_path / "run", resume=False)


def test_a_resumed_run_is_not_finished_until_it_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "summary.json").write_text("{}")
    claim(tmp_path, resume=True)
    assert not (tmp_path / "summary.json").exists()


def test_the_seed_decides_python_numpy_and_torch(start, sft):
    def draws(*overrides):
        run = start(*sft, *overrides).run
        prepare(run)
        return random.random(), np.random.rand(), float(torch.rand(()))

    first, again, other = draws(), draws(), draws("seed=6")
    assert first == again
    assert not set(first) & set(other)


def test_a_named_generator_follows_from_seed_and_name_alone(start, sft):
    def draw(run, *words):
        return torch.rand(4, generator=run.generator(*words)).tolist()

    run = start(*sft).run
    first = draw(run, "rollout", 3)
    torch.manual_seed(99)
    assert draw(run, "rollout", 3) == first
    assert draw(run, "rollout", 4) != first != draw(run, "minibatches", 3)
    assert draw(start(*sft, "seed=6").run, "rollout", 3) != first


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
