"""What the tests of training share: small data, small models with random weights, and ways to start a stage."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # no test asks the network

import pytest
import torch

torch.set_num_threads(1)  # small models: more threads only wait for each other, and sums would depend on their number

THINGS = ("film", "story", "cast", "music", "ending", "plot", "book", "song", "phone", "camera")
GOOD = ("good", "lovely", "bright", "warm", "funny", "clever")
BAD = ("dull", "bad", "slow", "cold", "weak", "noisy")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documents of a small world, in which words follow one another as in English."""
    words = zip(product(THINGS, GOOD, BAD), cycle(THINGS))
    return [f"the {thing} was {good} but the {other} was {bad}" for (thing, good, bad), other in words]


@pytest.fixture(scope="session")
def data_files(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file a view of ``data=jsonl``: text, demonstrations, rankings with ties and K = 2…5, prompts."""
    pairs = list(product(THINGS, THINGS))
    rows = {
        "text": [{"text": text} for text in texts[::4]],
        "demonstration": [
            {"prompt": f"what of the {thing}", "response": f"it was {good} and {other}"}
            for thing, good, other in islice(zip(cycle(THINGS), cycle(GOOD), cycle(GOOD[1:])), 60)
        ],
        "ranking": [ranking(number, *pair) for number, pair in enumerate(pairs[:60])],
        "prompt": [{"prompt": f"say of the {first} and of the {second}"} for first, second in pairs],
    }
    # One prompt would bring all its demonstrations into one split.
    for number, row in enumerate(rows["demonstration"]):
        row["prompt"] += f" and the {THINGS[number // 7]}"
    folder = tmp_path_factory.mktemp("data")
    for view, found in rows.items():
        (folder / f"{view}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return {view: folder / f"{view}.jsonl" for view in rows}


def ranking(number: int, first: str, second: str) -> dict[str, Any]:
    """A prompt with 2…5 responses; the more of them is praise, the better the rank; every third has a tie."""
    count = 2 + number % 4

    def some(words: tuple[str, ...], size: int) -> list[str]:
        return list(islice(cycle(words), number, number + size))

    responses = [" and ".join(some(GOOD, place) + some(BAD, count - place)) for place in range(count)]
    ranks = [count - 1 - place for place in range(count)]
    if number % 3 == 0:
        ranks[1] = ranks[0]
    return {"prompt": f"rate the {first} with the {second}", "responses": responses, "ranks": ranks}


@pytest.fixture(scope="session")
def data(data_files: dict[str, Path]) -> list[str]:
    """The overrides that choose these files."""
    files = [f"data.{view}_files=[{path}]" for view, path in data_files.items()]
    return ["data=jsonl", *files, "data.test_fraction=0.3"]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of 320 tokens with a chat template."""
    from rlhf_plugins.policy.tiny import learn_tokenizer

    return learn_tokenizer(texts, 320)


@pytest.fixture(scope="session")
def new_model(tokenizer: Any) -> Callable[..., Any]:
    """Make a small model of an architecture; weights are large enough that attention and positions matter."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 256}
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.15}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.15}

    def make(kind: str, **options: Any) -> Any:
        common = {"vocab_size": len(tokenizer), **ends}
        config = {
            "llama": lambda: LlamaConfig(**{**common, **sizes, **grouped, **options}),
            "qwen2": lambda: Qwen2Config(**{**common, **sizes, **grouped, "tie_word_embeddings": True, **options}),
            "qwen3": lambda: Qwen3Config(**{**common, **sizes, **grouped, "head_dim": 32, **options}),
            "gpt2": lambda: GPT2Config(**{**common, **gpt2, **options}),  # dropout 0.1, as GPT-2 has it
        }[kind]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()

    return make


@pytest.fixture(scope="session")
def checkpoints(new_model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a small Llama (grouped heads) and a small GPT-2 (learned positions, dropout) to start from."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("llama", "gpt2")}
    for kind, folder in folders.items():
        new_model(kind).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="session")
def reward_checkpoint(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as the ``reward_model`` stage saves one: random head, a bias."""
    from rlhf_plugins.policy.hf import HF

    model = HF(path=str(checkpoints["llama"])).scalar_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model.reset_head(std=0.5)
    model.bias.fill_(0.25)
    folder = tmp_path_factory.mktemp("reward_model")
    model.save(folder)
    return folder


@dataclass
class Started:
    """A stage set up and not yet trained."""

    run: Any
    algorithm: Any
    module: torch.nn.Module

    def gradients(self, step: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Of the first minibatch of a batch: the gradients of its microbatches' losses, and their averaged metrics."""
        from rlhf_core.trainer import Averages

        self.module.zero_grad()
        averages = Averages()
        batch = self.algorithm.collect(step)
        for microbatch in next(iter(self.algorithm.minibatches(batch))):
            loss = self.algorithm.loss(microbatch)
            loss.value.backward()
            averages.add(loss)
        found = {name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None}
        return found, averages.result()

    def equals(self, gradients: dict[str, torch.Tensor], metrics: dict[str, float], step: int = 1) -> None:
        """Check that gradients and metrics are those of another cut of the same batch, but for rounding."""
        mine, found = self.gradients(step=step)
        assert gradients.keys() == mine.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(mine[name], gradient, rtol=0, atol=1e-5 * scale + 1e-8, msg=name)
        assert found == pytest.approx(metrics, rel=1e-4, abs=2e-5)


@pytest.fixture
def start(data: list[str], tmp_path: Path) -> Callable[..., Started]:
    """Compose a stage from overrides and set its algorithm up, in this process."""

    def start(*overrides: str) -> Started:
        from rlhf_core.hydra_glue import compose_train
        from rlhf_core.run import Run, prepare

        composed = compose_train([*data, "device=cpu", *overrides], tmp_path / "run")
        run = Run(composed.settings, tmp_path / "run", torch.device("cpu"))
        run.folder.mkdir(exist_ok=True)
        prepare(run)
        module = run.settings.algorithm.setup(run)
        return Started(run, run.settings.algorithm, module)

    return start


@pytest.fixture(scope="session")
def ppo(checkpoints: dict[str, Path], reward_checkpoint: Path) -> Callable[..., list[str]]:
    """The overrides of a small PPO stage, for ``start`` and for the command line."""

    def overrides(kind: str = "llama", *more: str) -> list[str]:
        return [
            "algorithm=ppo", "policy=hf", f"policy.path={checkpoints[kind]}", "reward=learned",
            f"reward.path={reward_checkpoint}", "algorithm.batch_size=8", "algorithm.eval_prompts=4",
            "rollout.max_new_tokens=8", "seed=3", *more,
        ]  # fmt: skip

    return overrides


@pytest.fixture(scope="session")
def grpo(ppo: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The overrides of a small GRPO stage."""

    def overrides(kind: str = "llama", *more: str) -> list[str]:
        return [*ppo(kind), "algorithm=grpo", "algorithm.batch_size=4", "algorithm.responses=4", *more]

    return overrides


@pytest.fixture(scope="session")
def rlhf() -> Callable[..., SimpleNamespace]:
    """Run ``rlhf`` in a folder, in a process of its own; ``before`` is Python source that runs there first.

    It may call ``kill_when`` (see ``DRIVER``).
    """
    return lambda folder, *words, before="": in_process(folder, words, before)


@pytest.fixture(scope="session")
def installed() -> Callable[..., None]:
    """Put a module into a folder as an installed distribution has it: with the entry point that pyproject.toml says."""

    def installed(folder: Path, kind: str, name: str, module: str, registration: str) -> None:
        (folder / f"{name}.py").write_text(module)
        group, entry = re.search(rf'"(rlhf\.{kind})"\]\n(\w+ = ".+")', registration).groups()
        info = folder / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n" + entry.replace('"', "") + "\n")

    return installed


DRIVER = '''
import os, sys
sys.stdout.flush(), sys.stderr.flush()
for number, path in ((1, {out!r}), (2, {err!r})):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
os.chdir({folder!r})
import torch
torch.set_num_threads(1)

def kill_when(condition):
    """Die once a row of metrics.jsonl is written of which, and of the name of whose folder, this is true."""
    import signal
    from rlhf_core.jsonl import JsonLines
    append = JsonLines.append
    def dying(self, row):
        append(self, row)
        if self.path.name == "metrics.jsonl" and condition(row, self.path.parent.name):
            os.kill(os.getpid(), signal.SIGKILL)
    JsonLines.append = dying

{before}
from rlhf_core.cli import main
code = main({words!r})
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
'''


def in_process(folder: Path, words: tuple[str, ...], before: str) -> SimpleNamespace:
    """A new process, forked from one that has imported torch and transformers: 0.1 s where a bare one takes 4 s."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "rlhf_plugins.algorithm.ppo", "rlhf_plugins.policy.hf"])
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    source = DRIVER.format(out=str(out), err=str(err), folder=str(folder), before=before, words=list(words))
    process = context.Process(target=exec, args=(source, {"__name__": "driver"}))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        pytest.fail(f"rlhf {' '.join(words)} did not end")
    return SimpleNamespace(returncode=process.exitcode, stdout=out.read_text(), stderr=err.read_text())
