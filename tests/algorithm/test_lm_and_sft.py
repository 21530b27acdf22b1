"""Next-token losses against stock logits, and which tokens they count."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_core.errors import UserError
from rlhf_core.text import encode_document


@pytest.fixture
def stage(checkpoints):
    return lambda name, *more: [f"algorithm={name}", "policy=hf", f"policy.path={checkpoints['llama']}", *more]


def by_hand(folder, examples):
    """Mean −log p over the tokens after the first ``given`` of each example, and their number."""
    stock = AutoModelForCausalLM.from_pretrained(folder)
    losses = []
    for tokens, given in examples:
        with torch.no_grad():
            logprobs = stock(torch.tensor([tokens])).logits[0].log_softmax(-1)
        losses += [-float(logprobs[t - 1, tokens[t]]) for t in range(given, len(tokens))]
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("name", ["lm", "sft"])
def test_the_loss_is_the_mean_over_all_tokens_that_count(start, stage, checkpoints, name):
    started = start(*stage(name, "trainer.microbatch_tokens=40", "algorithm.batch_size=7"))
    batch = started.algorithm.collect(3)
    expected, count = by_hand(checkpoints["llama"], batch)
    _, metrics = started.gradients(step=3)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert started.algorithm.metrics(batch) == {"tokens": count}
    held_out, _ = by_hand(checkpoints["llama"], started.algorithm.held_out)
    found = started.algorithm.evaluate(0)
    assert found["loss"] == pytest.approx(held_out, rel=1e-5)
    assert found["perplexity"] == pytest.approx(torch.tensor(held_out).exp().item(), rel=1e-4)


def test_sft_learns_responses_and_their_end_never_prompts(start, stage):
    started = start(*stage("sft"))
    tokenizer, rows = started.algorithm.model.tokenizer, started.run.data.demonstrations("train")
    for (tokens, given), row in zip(started.algorithm.examples, rows, strict=True):
        assert tokenizer.decode(tokens[given:-1]).strip() == row.response
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:given]).startswith("<|user|>")


def test_pretraining_sees_whole_documents_and_cuts_long_ones(start, stage):
    started = start(*stage("lm", "algorithm.max_length=9"))
    tokenizer, end = started.algorithm.model.tokenizer, started.algorithm.model.end
    pieces = [tokens for tokens, given in started.algorithm.examples if given == 1]
    assert len(pieces) == len(started.algorithm.examples)
    assert max(map(len, pieces)) == 9 and min(map(len, pieces)) >= 2
    texts = started.run.data.text("train")
    assert sum(tokens[0] == end for tokens in pieces) == len(texts)
    # a piece begins with the token before it, which is given: every token but a document's first is predicted once
    documents = [encode_document(tokenizer, text) for text in texts]
    predicted = [token for tokens in pieces for token in tokens[1:]]
    assert predicted == [token for tokens in documents for token in tokens[1:]]


def test_dropout_is_on_in_training_and_off_in_evaluation(start, checkpoints):
    started = start("algorithm=sft", "policy=hf", f"policy.path={checkpoints['gpt2']}")
    (microbatches,) = started.algorithm.minibatches(started.algorithm.collect(0))
    losses = {float(started.algorithm.loss(microbatches[0]).value.detach()) for _ in range(3)}
    assert len(losses) == 3
    assert len({started.algorithm.evaluate(0)["loss"] for _ in range(3)}) == 1


def test_a_policy_made_from_the_data(start):
    started = start("algorithm=lm", "policy=tiny", "policy.vocabulary=300", "policy.hidden=32", "policy.layers=1")
    model = started.algorithm.model
    assert len(model.tokenizer) <= 300
    assert model.model.config.eos_token_id == model.end == model.tokenizer.eos_token_id
    assert started.algorithm.evaluate(0)["loss"] == pytest.approx(math.log(len(model.tokenizer)), rel=0.05)


def test_steps_are_epochs_over_batches(start, stage):
    started = start(*stage("sft", "algorithm.epochs=1.5", "algorithm.batch_size=4"))
    count = len(started.algorithm.examples)
    assert started.algorithm.total_steps == round(1.5 * count / 4)
    assert f"{count} examples" in started.algorithm.arithmetic()
    assert f"= {started.algorithm.total_steps} optimiser steps" in started.algorithm.arithmetic()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.eval_split=tests"], "algorithm.eval_split: got 'tests', expected one of train, validation, test"),
        (["algorithm.max_length=1"], "algorithm.max_length: got 1, expected at least 2"),
        (["algorithm.optimizer.schedule=square"], "algorithm.optimizer.schedule: got 'square', expected one of linear"),
        (["policy.dtype=float8"], "policy.dtype: got 'float8', expected one of float32, bfloat16"),
    ],
)
def test_refusals(start, stage, overrides, message):
    with pytest.raises(UserError) as caught:
        started = start(*stage("sft", *overrides))
        started.algorithm.optimizer.build(started.module)
    assert str(caught.value).startswith(message)


def test_without_held_out_data_nothing_is_measured_and_that_is_said(start, stage):
    started = start(*stage("sft", "algorithm.eval_split=validation", "data.validation_fraction=0"))
    assert started.algorithm.evaluate(0) == {}
    assert started.algorithm.headline({}) == "nothing measured: the data have no examples in 'validation'"
