"""What tests of algorithms share: a world of eight words whose optimum is known, stages, ways to change models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<end>", "ask", "one", "two", "three", "four", "five", "six"]
REWARDS = torch.tensor([0.0, -1.0, 1.0, 0.5, -0.5, 0.25, 2.0, -2.0])


class Table:
    """A reward that reads the one token of a response."""

    def setup(self, run: Any) -> None:
        """Nothing."""

    def score(self, samples: Any) -> torch.Tensor:
        """What the table says."""
        return REWARDS[torch.tensor([response[0] for response in samples.response_ids])]


@dataclass
class SmallWorld:
    """The one prompt is "ask", a response is one word."""

    folder: Path
    rewards = REWARDS
    reward = Table()

    @property
    def overrides(self) -> list[str]:
        """The policy, the prompts, responses of one token, and no file that is not needed."""
        return [
            "policy=hf", f"policy.path={self.folder / 'words'}", "reward=sentiment", "data.chat=false",
            f"data.prompt_files=[{self.folder / 'prompts.jsonl'}]",
            *[f"data.{view}_files=[]" for view in ("text", "demonstration", "ranking")],
            "data.test_fraction=0", "data.validation_fraction=0", "algorithm.eval_split=train",
            "algorithm.eval_prompts=1", "rollout.max_new_tokens=1", "rollout.batch_size=256",
            "trainer.checkpoint_every=0", "seed=1",
        ]  # fmt: skip

    def start(self) -> torch.nn.Module:
        """The policy before training."""
        from rlhf_plugins.policy.hf import HF

        return HF(path=str(self.folder / "words")).language_model(None).model.eval()

    @staticmethod
    def distribution(model: Any) -> torch.Tensor:
        """The probability of each word as the response."""
        with torch.no_grad():
            return model(torch.tensor([[1]])).logits[0, -1].float().softmax(-1)


@pytest.fixture
def small_world(new_model: Any, tmp_path: Path) -> SmallWorld:
    """A policy of eight words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    new_model("llama", vocab_size=8, eos_token_id=0, pad_token_id=None).save_pretrained(tmp_path / "words")
    words.save_pretrained(tmp_path / "words")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ask"}\n' * 512)
    return SmallWorld(tmp_path)


ONE_A_PROMPT = ("ppo", "reinforce", "reinforce_pp")


@pytest.fixture
def begun(start: Any, ppo: Any) -> Callable[..., Any]:
    """A stage with responses in groups of 4 where there are groups, a whole rollout as one microbatch."""

    def make(name: str, *overrides: str, kind: str = "llama") -> Any:
        sizes = (8, 1) if name in ONE_A_PROMPT else (4, 4)
        words = [f"algorithm.batch_size={sizes[0]}", f"algorithm.responses={sizes[1]}"]
        words += ["algorithm.minibatches_a_pass=1", "trainer.microbatch_tokens=100000"]
        return start(*ppo(kind), f"algorithm={name}", *words, *overrides)

    return make


@pytest.fixture(scope="session")
def move() -> Callable[..., None]:
    """Change a model's parameters by noise."""

    def move(model: torch.nn.Module, size: float = 0.02, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += size * torch.randn(parameter.shape, generator=generator)

    return move


@pytest.fixture(scope="session")
def may_end() -> Callable[[Any], None]:
    """Make an algorithm's policy end about every fourth time, so that responses have different lengths."""

    def may_end(algorithm: Any) -> None:
        head = algorithm.policy.model.get_output_embeddings()
        bias = torch.zeros(len(head.weight))
        bias[algorithm.policy.end] = 4.5
        head.bias = torch.nn.Parameter(bias)

    return may_end
