"""CORRECTNESS 1 and 2: before the first update the policy is the one that sampled, so every ratio is 1."""

import pytest
import torch

from rlhf_core.kernels import whitened

LLAMA, GPT2 = "llama", "gpt2"  # GPT-2 has learned positions, and dropout 0.1 in its config


def first_minibatch(started):
    batch = started.algorithm.collect(0)
    microbatches = next(iter(started.algorithm.minibatches(batch)))
    return batch, microbatches, [started.algorithm.loss(microbatch) for microbatch in microbatches]


def assert_ratio_is_one(losses):
    for loss in losses:
        for name, expected in (("ratio_max", 1), ("ratio_mean", 1), ("approx_kl", 0), ("clip_frac", 0)):
            assert float(loss.metrics[name]) == pytest.approx(expected, abs=2e-5), name


@pytest.mark.parametrize("kind", [LLAMA, GPT2])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_ratio_is_one(start, ppo, kind, temperature, budget):
    started = start(*ppo(kind, f"rollout.temperature={temperature}", f"trainer.microbatch_tokens={budget}"))
    batch, microbatches, losses = first_minibatch(started)
    assert len(microbatches) == {1: 4, 100_000: 1}.get(budget, len(microbatches))
    assert_ratio_is_one(losses)
    assert batch.metrics["kl"] == pytest.approx(0, abs=1e-4)  # the reference is the policy as it started
    assert [loss.metrics["first_ratio_max"] for loss in losses] == [loss.metrics["ratio_max"] for loss in losses]


@pytest.mark.parametrize("kind", [LLAMA, GPT2])
def test_ratio_is_one_with_adapters(start, ppo, kind):
    started = start(*ppo(kind, "policy.lora.rank=4", "rollout.temperature=1.3"))
    with torch.no_grad():  # adapters as they are some way into training; at the start they do nothing
        for name, parameter in started.algorithm.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    batch, _, losses = first_minibatch(started)
    assert_ratio_is_one(losses)
    assert abs(batch.metrics["kl"]) > 0.1  # the reference has them off


def test_the_check_can_fail(start, ppo):
    started = start(*ppo(LLAMA))
    batch = started.algorithm.collect(0)
    started.run.rollout.temperature = 1.05
    (microbatch,) = next(iter(started.algorithm.minibatches(batch)))
    with pytest.raises(AssertionError):
        assert_ratio_is_one([started.algorithm.loss(microbatch)])


def test_dropout_that_was_left_on_would_be_seen(start, ppo):
    started = start(*ppo(GPT2))
    batch = started.algorithm.collect(0)
    microbatches = next(iter(started.algorithm.minibatches(batch)))
    started.algorithm.policy.model.train()
    with pytest.raises(AssertionError):
        assert_ratio_is_one([started.algorithm.loss(microbatch) for microbatch in microbatches])


def test_no_dropout_in_policy_reference_and_critic_all_through_training(start, ppo):
    started = start(*ppo(GPT2))
    algorithm = started.algorithm
    for module in (algorithm.policy.model, algorithm.reference.model, algorithm.critic):
        assert not any(part.training for part in module.modules())


def test_the_ratio_moves_once_the_policy_does(start, ppo):
    started = start(*ppo(LLAMA, "algorithm.optimizer.lr=0.02"))
    optimizer = started.algorithm.optimizer.build(started.module)
    batch = started.algorithm.collect(0)
    seen = []
    for microbatches in started.algorithm.minibatches(batch):
        optimizer.zero_grad()
        for microbatch in microbatches:
            loss = started.algorithm.loss(microbatch)
            loss.value.backward()
            seen.append(loss.metrics)
        optimizer.step()
    assert float(seen[0]["approx_kl"]) == pytest.approx(0, abs=1e-6)
    assert all(float(metrics["approx_kl"]) > 1e-4 for metrics in seen[1:])
    assert all("first_ratio_max" not in metrics for metrics in seen[1:])


def test_the_first_loss_is_the_closed_form(start, ppo):
    """With a ratio of 1 the policy loss is −mean of the whitened advantages, and the value loss ½·mean (V − R)²."""
    started = start(*ppo(LLAMA, "trainer.microbatch_tokens=100000", "algorithm.minibatches_a_pass=1"))
    started.algorithm.critic.reset_head(0.5)  # at the start it says 0 everywhere
    batch, _, (loss,) = first_minibatch(started)
    old = batch.experience
    advantages = old.advantages[old.mask]
    torch.testing.assert_close(old.moments[0], advantages.mean())
    torch.testing.assert_close(old.moments[1], advantages.var(correction=0))
    white = whitened(advantages, *old.moments)
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(loss.metrics["policy_loss"]) == pytest.approx(float(-white.mean()), abs=1e-4)
    values = 0.5 * (old.values - old.returns)[old.mask].square().mean()
    assert float(loss.metrics["value_loss"]) == pytest.approx(float(values), rel=1e-4)
    assert float(loss.value.detach()) == pytest.approx(float(-white.mean() + 0.5 * values), abs=1e-4)
