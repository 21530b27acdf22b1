"""PPO against the one case whose answer is known: responses of one token, p* ∝ p_ref · exp(r/β)."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_core.trainer import Trainer
from rlhf_plugins.policy.hf import HF

WORDS = ["<end>", "ask", "one", "two", "three", "four", "five", "six"]
REWARDS = torch.tensor([0.0, -1.0, 1.0, 0.5, -0.5, 0.25, 2.0, -2.0])
BETA = 0.7


class Table:
    """A reward that reads the one token of a response."""

    def setup(self, run):
        pass

    def score(self, samples):
        return REWARDS[torch.tensor([response[0] for response in samples.response_ids])]


@pytest.fixture
def small_world(new_model, tmp_path):
    """A policy of eight words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    new_model("llama", vocab_size=8, eos_token_id=0, pad_token_id=None).save_pretrained(tmp_path / "words")
    words.save_pretrained(tmp_path / "words")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ask"}\n' * 512)
    return tmp_path


def test_it_converges_to_the_kl_regularised_optimum(start, small_world):
    prompts = f"[{small_world / 'prompts.jsonl'}]"
    started = start(
        "algorithm=ppo", "policy=hf", f"policy.path={small_world / 'words'}", "reward=sentiment", "data.chat=false",
        f"data.prompt_files={prompts}", *[f"data.{view}_files=[]" for view in ("text", "demonstration", "ranking")],
        "data.test_fraction=0", "data.validation_fraction=0", "algorithm.eval_split=train", "algorithm.eval_prompts=1",
        "algorithm.batch_size=256", "algorithm.steps=30", "algorithm.minibatches_a_pass=1", "algorithm.epochs=3",
        f"algorithm.kl_coef={BETA}", "algorithm.optimizer.lr=0.01", "algorithm.optimizer.schedule=linear",
        "rollout.max_new_tokens=1", "rollout.batch_size=256", "trainer.checkpoint_every=0", "seed=1",
    )  # fmt: skip
    started.run.settings.reward = Table()
    trainer = Trainer(started.run, started.algorithm)
    model = started.algorithm.policy.model
    reference = distribution(HF(path=str(small_world / "words")).language_model(None).model.eval())
    trainer.fit()
    optimum = (reference.log() + REWARDS / BETA).softmax(-1)
    assert float((reference - optimum).abs().sum() / 2) > 0.3  # there was something to learn
    assert float((distribution(model) - optimum).abs().sum() / 2) < 0.03


def distribution(model):
    with torch.no_grad():
        return model(torch.tensor([[1]])).logits[0, -1].float().softmax(-1)
