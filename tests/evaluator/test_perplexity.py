"""The loss on held-out text: against a loop, whatever the cut; nothing where there is no policy."""

import math

import pytest
import torch

from rlhf_core.contracts.evaluator import Subject
from rlhf_core.errors import UserError
from rlhf_core.text import encode_document


@pytest.fixture
def evaluated(start, checkpoints):
    def evaluated(*overrides):
        return start(
            "algorithm=evaluate", "policy=hf", f"policy.path={checkpoints['gpt2']}", "algorithm.eval_prompts=2",
            "rollout.max_new_tokens=2", "evaluator=[perplexity]", *overrides,
        )  # fmt: skip

    return evaluated


def by_loop(started, length=256):
    """−Σ log p over tokens, a document at a time through the stock forward."""
    policy, documents = started.algorithm.policy, started.run.data.text("test")
    total, count = 0.0, 0
    for text in documents:
        tokens = torch.tensor(encode_document(policy.tokenizer, text)[:length])
        with torch.no_grad():
            logits = policy.model(tokens[None], cu_seqlens=torch.tensor([0, len(tokens)], dtype=torch.int32)).logits[0]
        found = logits.double().log_softmax(-1)[:-1].gather(1, tokens[1:, None])
        total, count = total - float(found.sum()), count + len(found)
    return total / count


@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_a_mean_over_tokens(evaluated, budget):
    started = evaluated(f"trainer.microbatch_tokens={budget}")
    metrics = started.algorithm.evaluate(0)
    expected = by_loop(started)
    assert metrics["text_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["text_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_long_documents_are_cut(evaluated):
    started = evaluated("evaluator.perplexity.max_length=5")
    assert started.algorithm.evaluate(0)["text_loss"] == pytest.approx(by_loop(started, 5), rel=1e-5)


def test_a_reward_model_has_no_text_to_predict(evaluated):
    assert evaluated().run.evaluators["perplexity"].evaluate(Subject()) == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluator.perplexity.limit=0", "evaluator.perplexity.limit: got 0, expected at least 1"),
        ("evaluator.perplexity.max_length=1", "evaluator.perplexity.max_length: got 1, expected at least 2"),
        ("evaluator.perplexity.split=tset", "evaluator.perplexity.split: got 'tset', expected one of"),
    ],
)
def test_refusals(evaluated, override, message):
    with pytest.raises(UserError) as caught:
        evaluated(override)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
