"""Several processes train what one trains: the same samples, losses and weights, written once."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rlhf_core import ranks
from rlhf_core.contracts.algorithm import Loss
from rlhf_core.sampling import part_of
from rlhf_core.trainer import Averages
from rlhf_plugins.rollout.transformers import Transformers

MODEL = ["policy=hf", "device=cpu", "threads=1", "seed=3", "trainer.max_steps=3"]
RANK = """
os.environ |= {{"WORLD_SIZE": "{count}", "RANK": "{rank}", "LOCAL_RANK": "{rank}", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": "{port}", "TMPDIR": {scratch!r}}}
"""
KILL = 'kill_when(lambda row, _: row["step"] == 2)'


@pytest.fixture(scope="module")
def stages(data, ppo, grpo, checkpoints):
    small = [*data, *MODEL, f"policy.path={checkpoints['llama']}", "algorithm.batch_size=6"]
    sampling = ["rollout.batch_size=6", "trainer.microbatch_tokens=90", "algorithm.optimizer.lr=1e-3"]
    return {
        "sft": [*small, "algorithm=sft", "trainer.microbatch_tokens=50"],
        "reward_model": [*small, "algorithm=reward_model", "trainer.microbatch_tokens=120"],
        "dpo": [*small, "algorithm=dpo", "trainer.microbatch_tokens=120"],
        "ppo": [*data, *MODEL, *ppo("llama", *sampling, "algorithm.ptx_coef=0.5", "algorithm.ptx_batch=4")],
        "grpo": [*data, *MODEL, *grpo("llama", *sampling, "algorithm.eval_prompts=1", "algorithm.epochs=2")],
        "adapters": [*data, *MODEL, *grpo("llama", *sampling, "policy.lora.rank=2")],
        "one microbatch": [*data, *MODEL, *grpo("llama", "algorithm.optimizer.lr=1e-3")],
        "dropout": [*small, f"policy.path={checkpoints['gpt2']}", "algorithm=sft", "trainer.microbatch_tokens=50",
                    "trainer.checkpoint_every=1"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def start_ranks(rlhf):
    """Run ``rlhf`` in several processes as ``torchrun`` would; each has a working folder of its own."""

    def start(folder, *words, count=2, before="", own=((),) * 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folders = [folder / f"rank{rank}" for rank in range(count)]
        for path in folders:
            (path / "scratch").mkdir(parents=True, exist_ok=True)
        sources = [
            RANK.format(count=count, rank=rank, port=port, scratch=str(path / "scratch")) + before
            for rank, path in enumerate(folders)
        ]
        with ThreadPoolExecutor(count) as pool:
            calls = [
                pool.submit(rlhf, path, *words, *own[rank], before=source)
                for rank, (path, source) in enumerate(zip(folders, sources, strict=True))
            ]
            return [call.result() for call in calls]

    return start


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def assert_alike(one, two):
    """Metrics and weights of two run folders are equal within rounding, samples are equal."""
    alone, together = rows(one / "metrics.jsonl"), rows(two / "metrics.jsonl")
    assert len(alone) == len(together) > 2
    for expected, found in zip(alone, together, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            wanted = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=2e-5)
            assert found[name] == wanted, (name, expected["step"])
    for expected, found in zip(rows(one / "samples.jsonl"), rows(two / "samples.jsonl"), strict=True):
        assert found["response"] == expected["response"] and found["step"] == expected["step"]
    weights = load_file(two / "result" / "model.safetensors")
    for name, expected in load_file(one / "result" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("stage", ["sft", "reward_model", "dpo", "ppo", "grpo", "adapters", "one microbatch"])
def test_two_processes_train_what_one_trains(rlhf, start_ranks, stages, tmp_path, stage):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = rlhf(tmp_path, "train", *stages[stage], f"run_dir={one}")
    assert (alone.returncode, alone.stderr) == (0, "")
    main, other = start_ranks(tmp_path, "train", *stages[stage], f"run_dir={two}")
    assert (main.returncode, other.returncode, other.stderr) == (0, 0, "")
    assert_alike(one, two)

    assert files(one) == files(two)  # what one process writes, and nothing beside it
    assert [json.loads((path / "env.json").read_text())["processes"] for path in (one, two)] == [1, 2]
    for rank in range(2):
        own = files(tmp_path / f"rank{rank}")
        assert {str(path) for path in own} == {"stdout.txt", "stderr.txt"}
    told = "trainer.microbatch_tokens: 8192 leave processes idle: 1 microbatches for 2 of them; lower it\n"
    told = told if stage == "one microbatch" else ""
    assert main.stdout.replace("two", "one").replace(told, "", 1) == alone.stdout and other.stdout == ""
    assert told in main.stdout


def test_more_processes_than_microbatches_and_prompts(rlhf, start_ranks, stages, tmp_path):
    one, three = tmp_path / "one", tmp_path / "three"
    words = [*stages["grpo"], "algorithm.batch_size=2", "trainer.microbatch_tokens=200"]
    assert rlhf(tmp_path, "train", *words, f"run_dir={one}").returncode == 0
    assert [done.returncode for done in start_ranks(tmp_path, "train", *words, f"run_dir={three}", count=3)] == [0] * 3
    assert_alike(one, three)


@pytest.mark.parametrize("stage", ["dropout", "ppo"])
def test_a_killed_run_of_two_processes_goes_on_as_if_never_stopped(start_ranks, stages, tmp_path, stage):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["train", *stages[stage], "trainer.checkpoint_every=1"]
    assert [done.returncode for done in start_ranks(tmp_path, *words, f"run_dir={whole}")] == [0, 0]
    assert [done.returncode for done in start_ranks(tmp_path, *words, f"run_dir={killed}", before=KILL)] == [-9, -9]
    assert rows(killed / "metrics.jsonl")[-1]["step"] == 2
    resumed = start_ranks(tmp_path, "train", f"resume={killed}")
    assert [(done.returncode, done.stderr) for done in resumed] == [(0, "")] * 2
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    results = [(folder / "result" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("own", "what"),
    [("seed=4", "weights"), ("algorithm.batch_size=5", "data or settings")],
)
def test_processes_that_hold_different_things_are_refused(start_ranks, stages, tmp_path, own, what):
    stage = [word for word in stages["reward_model"] if not word.startswith(own.split("=")[0])]
    here = ((own.split("=")[0] + "=3",), (own,))
    for done in start_ranks(tmp_path, "train", *stage, f"run_dir={tmp_path / 'run'}", own=here):
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: torchrun: processes 0 and 1 have different {what}: ")


def test_a_folder_that_holds_a_run_is_refused_once(start_ranks, stages, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    main, other = start_ranks(tmp_path, "train", *stages["sft"], f"run_dir={tmp_path / 'run'}")
    assert (main.returncode, other.returncode) == (1, 1)
    assert main.stderr.startswith("error: run_dir: ")
    assert other.stderr == "error: torchrun: process 1 lost another, whose own message says why it stopped\n"
    assert files(tmp_path / "run") == {Path("metrics.jsonl")}


def test_without_a_folder_of_its_own_a_run_has_the_first_process_s(start_ranks, stages, tmp_path):
    """Folders are named by the time, which processes may read differently."""
    main, other = start_ranks(tmp_path, "train", *stages["sft"])
    assert (main.returncode, other.returncode) == (0, 0)
    (run,) = (tmp_path / "rank0" / "runs").iterdir()
    assert (run / "summary.json").exists()
    assert not files(tmp_path / "rank1" / "runs")


@pytest.fixture
def world(monkeypatch):
    """Pretend to be one of several processes."""

    def pretend(rank, count, gathered=None):
        monkeypatch.setattr(ranks, "count", lambda: count)
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "gather", lambda value: gathered or [value])

    return pretend


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("keys", ["", "a", "aaaa", "aabbcc", "aaabccdddde", "abcdefgh", "aabaa"])
def test_shares_are_contiguous_and_keep_equal_neighbours_together(world, keys, count):
    shares = []
    for rank in range(count):
        world(rank, count)
        shares.append(ranks.share(keys))
    assert [place for share in shares for place in share] == list(range(len(keys)))
    for share in shares:
        assert not share or share.start == 0 or keys[share.start] != keys[share.start - 1]
    if len(set(keys)) == len(keys):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_microbatches_are_dealt_in_turn(world):
    dealt = []
    for rank in range(3):
        world(rank, 3)
        dealt.append(list(ranks.deal("abcdefg")))
    assert dealt == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


def test_averages_of_all_processes_are_those_of_one(world):
    losses = [
        Loss(torch.zeros(()), {"a": 1.0, "b_max": 5.0, "only": 2.0}, weight=1),
        Loss(torch.zeros(()), {"a": 5.0, "b_max": 7.0}, weight=3),
        Loss(torch.zeros(()), {"a": 2.0}, weight=4),
    ]
    parts, whole = [Averages(), Averages(), Averages()], Averages()
    for part, loss in zip(parts, losses, strict=False):
        part.add(loss)
        whole.add(loss)
    world(0, 3, [(part.sums, part.weights, part.largest) for part in [*parts[:2], Averages(), parts[2]]])
    whole.gradient_norms = parts[0].gradient_norms = [torch.tensor(3.0)]
    assert parts[0].of_all_ranks().result() == whole.result()


def test_an_engine_that_does_not_say_what_it_draws_gets_numbers_of_its_own(world):
    drawn = []
    for rank in range(2):
        world(rank, 2)
        generator = part_of(torch.Generator().manual_seed(1), SimpleNamespace(), before=3, count=6)
        drawn.append(torch.rand(4, generator=generator).tolist())
    assert drawn[0] != drawn[1]


def test_every_process_leaves_the_generator_where_one_process_would(world):
    engine = Transformers(max_new_tokens=5)
    alone = torch.Generator().manual_seed(1)
    table = torch.rand(6, 5, dtype=torch.float64, generator=alone)
    for rank, before in enumerate((0, 4)):
        world(rank, 2)
        generator = torch.Generator().manual_seed(1)
        own = part_of(generator, engine, before, 6)
        assert torch.equal(torch.rand(2, 5, dtype=torch.float64, generator=own), table[before : before + 2])
        assert torch.equal(generator.get_state(), alone.get_state())


def test_one_process_talks_to_nobody():
    assert not torch.distributed.is_initialized()
    value = object()
    assert ranks.count() == 1 and ranks.rank() == 0 and ranks.gather(value) == [value]
    module = torch.nn.Linear(2, 2)
    ranks.sum_gradients(module)
    assert module.weight.grad is None
    ranks.join(torch.device("cpu"))
    assert not torch.distributed.is_initialized()


def test_a_process_has_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    found = [str(ranks.local(torch.device(name))) for name in ("cpu", "cuda", "cuda:1")]
    assert found == ["cpu", "cuda:2", "cuda:1"]
    monkeypatch.delenv("WORLD_SIZE")
    assert str(ranks.local(torch.device("cuda"))) == "cuda"
