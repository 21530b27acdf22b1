"""CORRECTNESS 19, 21, 24: what PPO starts from, what it trains, and what it refuses."""

import pytest
import torch

from rlhf_core.errors import UserError


def train(started, steps=1):
    optimizer = started.algorithm.optimizer.build(started.module)
    for step in range(steps):
        batch = started.algorithm.collect(step)
        for microbatches in started.algorithm.minibatches(batch):
            for microbatch in microbatches:
                started.algorithm.loss(microbatch).value.backward()
            optimizer.step()
            optimizer.zero_grad()
    return batch


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_the_critic_starts_from_the_reward_model_with_a_head_of_zeros(start, ppo, reward_checkpoint, checkpoints):
    started = start(*ppo("llama", f"algorithm.critic_path={reward_checkpoint}"))
    critic = started.algorithm.critic
    assert not critic.head.weight.any() and float(critic.bias) == 0
    assert not started.algorithm.collect(0).experience.values.any()
    own = dict(critic.model.base_model.named_parameters())
    body = dict(started.algorithm.policy.model.base_model.named_parameters())
    assert all(torch.equal(own[name], parameter) for name, parameter in body.items())  # this reward model has the same
    assert all(own[name] is not parameter for name, parameter in body.items())
    train(started)
    assert critic.head.weight.any()
    assert started.algorithm.collect(1).experience.values.any()


def test_a_frozen_critic_stays(start, ppo):
    started = start(*ppo("llama", "algorithm.freeze_critic=true"))
    assert trained(started.module) == {name for name in trained(started.module) if name.startswith("policy.")}
    train(started)
    assert not started.algorithm.critic.head.weight.any()


def test_with_lora_policy_and_critic_train_adapters_alone(start, ppo):
    started = start(*ppo("llama", "policy.lora.rank=2"))
    names = trained(started.module)
    assert any("lora_" in name for name in names if name.startswith("critic."))
    assert {name for name in names if "lora_" not in name} == {
        name for name, _ in started.module.named_parameters() if "score.modules_to_save" in name
    }


def test_the_reference_stays_as_it_was(start, ppo):
    started = start(*ppo("llama", "algorithm.optimizer.lr=0.01"))
    algorithm, packed = started.algorithm, started.algorithm.collect(0).experience.packed
    with torch.no_grad():
        before = algorithm.reference.logprobs(packed)
    train(started)
    with torch.no_grad():
        assert torch.equal(algorithm.reference.logprobs(packed), before)
        assert not torch.allclose(algorithm.policy.logprobs(packed), before, atol=1e-2)
    assert not any(p.requires_grad for p in algorithm.reference.model.parameters())
    assert not {id(p) for p in algorithm.reference.model.parameters()} & {id(p) for p in started.module.parameters()}


def test_beta_follows_the_kl_of_its_rollouts_and_is_saved(start, ppo):
    started = start(*ppo("llama", "algorithm.kl_target=2", "algorithm.kl_horizon=100", "algorithm.responses=2"))
    algorithm, coef = started.algorithm, 0.05
    for step in range(3):
        batch = train(started) if step else algorithm.collect(0)
        assert batch.metrics["kl_coef"] == pytest.approx(coef)  # the one this rollout's rewards were shaped with
        coef *= 1 + min(max(batch.metrics["kl"] / 2 - 1, -0.2), 0.2) * 16 / 100  # 8 prompts × 2 responses
        assert algorithm.state_dict() == {"kl_coef": pytest.approx(coef)}
    algorithm.load_state_dict({"kl_coef": 0.125})
    assert algorithm.collect(3).metrics["kl_coef"] == 0.125


def test_held_out_answers_do_not_steer_beta(start, ppo):
    started = start(*ppo("llama", "algorithm.kl_target=2"))
    started.algorithm.evaluate(0)
    assert started.algorithm.state_dict() == {"kl_coef": 0.05}


def test_rollouts_sample_and_differ_from_step_to_step(start, ppo):
    started = start(*ppo("llama"))
    first, second = started.algorithm.collect(0), started.algorithm.collect(0)
    assert torch.equal(first.experience.packed.tokens, second.experience.packed.tokens)  # a function of seed and step
    started.algorithm.order.batch = lambda step: list(range(8))
    one, two = (started.algorithm.collect(step).experience.packed.tokens.tolist() for step in (1, 2))
    assert one != two


def test_several_responses_a_prompt_stand_side_by_side(start, ppo):
    started = start(*ppo("llama", "algorithm.responses=3"))
    experience = started.algorithm.collect(0).experience
    split = experience.packed.split
    rows = zip(split(experience.packed.tokens), split(experience.mask), strict=True)
    prompts = [tokens[~mask].tolist() for tokens, mask in rows]
    assert len(prompts) == 24
    assert all(prompts[place] == prompts[place - place % 3] for place in range(24))
    assert len({tuple(prompt) for prompt in prompts}) == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.top_p=0.9"], "rollout.top_p: got 0.9, but training needs 1.0"),
        (["algorithm.minibatches_a_pass=3"], "algorithm.minibatches_a_pass: 8 prompts × 1 responses do not"),
        (["algorithm.kl_target=0"], "algorithm.kl_target: got 0.0, expected more than 0"),
        (["algorithm.kl_target=-1"], "algorithm.kl_target: got -1.0, expected more than 0"),
        (["reward=null"], "reward: null, but this algorithm scores what it samples; add e.g. reward="),
        (["rollout=null"], "rollout: null, but this algorithm samples; add e.g. rollout=transformers"),
        (["rollout.temperature=0"], "rollout.temperature: got 0.0, expected more than 0"),
        (["policy.path=null"], "policy.path: null, expected a checkpoint folder"),
        (["algorithm.batch_size=500"], "algorithm.batch_size: got 500, but the data have only"),
        (["data.test_fraction=0"], "algorithm.eval_split: the data have no prompts in 'test'"),
    ],
)
def test_refusals(start, ppo, overrides, message):
    words = ppo("llama", *overrides)
    if overrides[0].endswith("=null"):  # the values of what is not chosen would be refused first
        words = [word for word in words if not word.startswith(overrides[0].replace("=null", "."))] + overrides
    with pytest.raises(UserError) as caught:
        start(*words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_arithmetic_says_what_will_be_done(start, ppo):
    started = start(*ppo("llama", "algorithm.responses=2", "algorithm.steps=5", "algorithm.epochs=3"))
    text = started.algorithm.arithmetic()
    assert "5 rollouts of 8 prompts × 2 responses = 16 responses" in text
    assert "3 epochs × 2 minibatches of 8: 30 optimiser steps" in text
