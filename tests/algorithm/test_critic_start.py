"""CORRECTNESS 21: the critic starts from the policy where no reward model is named; its head is of zeros."""

import torch


def test_without_a_reward_model_the_critic_starts_from_the_policy(start, ppo):
    algorithm = start(*ppo("gpt2")).algorithm
    critic, policy = algorithm.critic, algorithm.policy.model
    body = dict(critic.model.base_model.named_parameters())
    for name, parameter in policy.base_model.named_parameters():
        assert torch.equal(body[name], parameter) and body[name] is not parameter, name
    assert not critic.head.weight.any() and float(critic.bias) == 0
    old = algorithm.collect(0).experience
    assert not old.values.any()
    torch.testing.assert_close(old.returns, old.advantages)  # of a critic that says 0


def test_a_reward_models_bias_does_not_shift_the_values(start, ppo, reward_checkpoint):
    """It was set so that demonstrations score 0; a value has no such zero."""
    algorithm = start(*ppo("llama", f"algorithm.critic_path={reward_checkpoint}")).algorithm
    assert float(algorithm.critic.bias) == 0
    assert not algorithm.collect(0).experience.values.any()
