"""CORRECTNESS 18: PPO plus γ_ptx times the pretraining objective, one optimiser step, its own denominator."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_core.experience import Microbatch

GAMMA = 3.0
POLICY = "policy."


def test_the_gradient_is_ppos_plus_gamma_times_the_mean_over_the_texts_own_tokens(start, ppo, checkpoints):
    plain = start(*ppo("llama"))
    mixed = start(*ppo("llama", f"algorithm.ptx_coef={GAMMA}", "algorithm.ptx_batch=5"))
    without, _ = plain.gradients()
    with_text, metrics = mixed.gradients()

    stock = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    documents = [mixed.algorithm.texts[index] for index in mixed.algorithm.text_order.batch(0)]
    assert len(documents) == 5
    logprobs = [
        stock(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])
        for tokens in documents
    ]
    loss = -torch.cat(logprobs).mean()
    loss.backward()
    assert metrics["ptx_loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, parameter in stock.named_parameters():
        expected = without[POLICY + name] + GAMMA * parameter.grad
        scale = float(expected.abs().max())
        torch.testing.assert_close(with_text[POLICY + name], expected, rtol=0, atol=1e-4 * scale, msg=name)
    for name in without:
        if not name.startswith(POLICY):  # the critic knows nothing of it
            assert torch.equal(with_text[name], without[name]), name


def test_text_joins_every_optimiser_step_and_goes_on_from_step_to_step(start, ppo):
    started = start(*ppo("llama", "algorithm.ptx_coef=1", "algorithm.ptx_batch=3", "algorithm.epochs=2"))
    seen = []
    for step in (0, 1):
        minibatches = list(started.algorithm.minibatches(started.algorithm.collect(step)))
        assert len(minibatches) == 4  # 2 epochs × 2 minibatches: no step of its own
        for microbatches in minibatches:
            text = [microbatch for microbatch in microbatches if not isinstance(microbatch, Microbatch)]
            assert 0 < len(text) < len(microbatches)
            seen.append(tuple(tuple(microbatch.packed.tokens.tolist()) for microbatch in text))
    assert len(set(seen)) == len(seen) == 8


def test_gamma_zero_is_ppo_to_the_bit(start, ppo, data_files):
    """One run reads its data with pretraining text in them and γ = 0, the other has no text at all."""
    no_text = [f"data.{view}_files=[{data_files[view]}]" for view in ("prompt", "demonstration", "ranking")]
    found = []
    for overrides in ([], ["data.text_files=[]", *no_text]):
        started = start(*ppo("llama", "algorithm.ptx_coef=0", *overrides))
        optimizer = started.algorithm.optimizer.build(started.module)
        for step in range(2):
            batch = started.algorithm.collect(step)
            for microbatches in started.algorithm.minibatches(batch):
                for microbatch in microbatches:
                    started.algorithm.loss(microbatch).value.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append((batch.metrics, dict(started.module.named_parameters())))
    (metrics, parameters), (other_metrics, others) = found
    assert metrics == other_metrics
    assert all(torch.equal(parameter, others[name]) for name, parameter in parameters.items())
