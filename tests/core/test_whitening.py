"""CORRECTNESS 8: masked, population variance, over all of a rollout, whatever number of minibatches it is cut into."""

import pytest
import torch

from rlhf_core import kernels
from rlhf_core.batch import offsets


def test_one_valid_token_is_whitened_to_zero():
    """The sample variance of one number would be 0/0."""
    mask = torch.tensor([False, True, False])
    gae = kernels.shaped_gae(torch.tensor([5.0]), torch.zeros(3), offsets([3]), mask=mask)
    assert (int(gae.count), float(gae.mean), float(gae.var)) == (1, 5.0, 0.0)
    assert kernels.whitened(gae.advantages[mask], gae.mean, gae.var).tolist() == [0.0]
    logprobs = torch.zeros(3, requires_grad=True)
    loss, _ = kernels.ppo_loss(logprobs, torch.zeros(3), gae.advantages, mask=mask, whiten=(gae.mean, gae.var))
    loss.backward()
    assert float(loss.detach()) == 0 and not logprobs.grad.any()


def test_mean_and_variance_are_under_one_mask_and_divided_by_its_count():
    """By hand: of 3, 5 and 10 the mean is 6 and the population variance 26/3; 100 is masked."""
    gae = kernels.shaped_gae(
        torch.zeros(2), torch.zeros(4), offsets([2, 2]), mask=torch.tensor([True, False, True, True]),
        rewards=torch.tensor([3.0, 100.0, 5.0, 10.0]), gamma=0.0,
    )  # fmt: skip
    assert float(gae.mean) == 6.0
    assert float(gae.var) == pytest.approx(26 / 3)
    white = kernels.whitened(torch.tensor([3.0, 5.0, 10.0], dtype=torch.float64), gae.mean.double(), gae.var.double())
    assert white.tolist() == pytest.approx([-3 / (26 / 3) ** 0.5, -1 / (26 / 3) ** 0.5, 4 / (26 / 3) ** 0.5])


@pytest.mark.parametrize("name", ["ppo", "reinforce_pp"])
def test_every_minibatch_is_whitened_by_the_whole_rollouts_moments(start, ppo, name):
    """A minibatch's own moments would make each policy loss 0; so would a mean of means."""
    words = ["algorithm.minibatches_a_pass=4", "algorithm.epochs=1", "trainer.microbatch_tokens=60"]
    started = start(*ppo("llama"), f"algorithm={name}", "algorithm.batch_size=8", *words)
    batch = started.algorithm.collect(0)
    old = batch.experience
    chosen = old.advantages[old.mask].double()
    mean, var = chosen.mean(), chosen.var(correction=0)
    torch.testing.assert_close(old.moments[0].double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(old.moments[1].double(), var, rtol=1e-5, atol=0)
    losses = []
    for parts in started.algorithm.minibatches(batch):
        found = [started.algorithm.loss(part) for part in parts]
        tokens = torch.cat([part.experience.advantages[part.experience.mask] for part in parts]).double()
        expected = -float(((tokens - mean) / (var + 1e-8).sqrt()).mean())  # of ratios that are 1
        weights = sum(loss.weight for loss in found)
        policy_loss = sum(float(loss.metrics["policy_loss"]) * loss.weight for loss in found) / weights
        assert policy_loss == pytest.approx(expected, abs=1e-4)
        losses.append(expected)
    assert len(losses) == 4 and max(map(abs, losses)) > 0.05
