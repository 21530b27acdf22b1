"""AdamW's schedule and groups, and one step against the update written out."""

import math

import pytest
import torch
from torch import nn

from rlhf_core.errors import UserError
from rlhf_core.optimizer import AdamW


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * done))),
        ("constant", lambda done: 1.0),
    ],
)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_schedule(schedule, shape, final):
    optimizer = AdamW(lr=2e-3, warmup_steps=4, schedule=schedule, final_lr=final)
    for step in range(20):
        expected = 2e-3 * min(1, (step + 1) / 4) * (final + (1 - final) * shape(step / 20))
        assert optimizer.lr_at(step, 20) == pytest.approx(expected, rel=1e-12)
    assert optimizer.lr_at(0, 20) > 0  # the first step is not wasted


def test_without_warm_up_the_first_rate_is_the_highest():
    assert AdamW(lr=0.5).lr_at(0, 10) == 0.5


def test_decay_is_of_matrices_only_and_frozen_parameters_stay_out():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    module[2].requires_grad_(False)
    decayed, others = AdamW(weight_decay=0.1).build(module).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight)]
    assert {id(p) for p in others["params"]} == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}


def test_a_step_is_the_papers_update():
    config = AdamW(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-5, weight_decay=0.5)
    module = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    optimizer = config.build(module)
    weight, first, second = module.weight.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step, gradient in enumerate([torch.tensor([[0.5, 0.1]]), torch.tensor([[-1.0, 0.2]])], start=1):
        module.weight.grad = gradient.double()
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        adam = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-5)
        weight = weight - 0.1 * 0.5 * weight - 0.1 * adam
        torch.testing.assert_close(module.weight.detach(), weight, rtol=1e-6, atol=0)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match=r"schedule: got 'square', expected one of linear, cosine, constant"):
        AdamW(schedule="square").build(nn.Linear(1, 1))


def test_ppo_takes_the_papers_epsilon():
    from rlhf_plugins.algorithm.ppo import PPO

    assert PPO().optimizer.eps == 1e-5
