"""GRPO against the one case whose answer is known: responses of one token.

Its KL is k3 by samples of the policy, whose gradient is that of KL(π_ref‖π), so what it converges to is not
p_ref · exp(r/β): where ∂/∂z_a of E[r] − β·KL(π_ref‖π), π_a(r_a − r̄) − β(π_a − π_ref,a), is 0 for every logit z_a,
π_a = β·π_ref,a / (β + r̄ − r_a). Comparing with a mean that holds the response itself shrinks the first term by 1 − 1/G.
"""

import torch

from rlhf_core.trainer import Trainer

BETA = 2.0
GROUP = 16


def optimum(reference, rewards, beta):
    """β·π_ref / (λ − r) with the λ > max r at which it adds up to 1, by bisection."""
    reference, rewards = reference.double(), rewards.double()
    low, high = rewards.max(), rewards.max() + beta
    for _ in range(200):
        middle = (low + high) / 2
        total = (beta * reference / (middle - rewards)).sum()
        low, high = (middle, high) if total > 1 else (low, middle)
    return (beta * reference / (high - rewards)).float()


def test_the_closed_form_is_a_stationary_point():
    reference, rewards = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, -1.0])
    found = optimum(reference, rewards, 0.8)
    assert abs(float(found.sum()) - 1) < 1e-6
    logits = found.log().double().requires_grad_()
    p = logits.softmax(-1)
    objective = (p * rewards).sum() + 0.8 * (reference.double() * p.log()).sum()
    (gradient,) = torch.autograd.grad(objective, logits)
    assert float(gradient.abs().max()) < 1e-6


def test_it_converges_to_what_its_objective_says(start, small_world):
    started = start(
        "algorithm=grpo", *small_world.overrides, "algorithm.batch_size=16", f"algorithm.responses={GROUP}",
        "algorithm.steps=60", f"algorithm.kl_coef={BETA}", "algorithm.scale_by_std=false",
        "algorithm.optimizer.lr=0.01", "algorithm.optimizer.schedule=linear",
    )  # fmt: skip
    started.run.settings.reward = small_world.reward
    trainer = Trainer(started.run, started.algorithm)
    model = started.algorithm.policy.model
    reference = small_world.distribution(small_world.start())
    trainer.fit()
    best = optimum(reference, small_world.rewards, BETA * GROUP / (GROUP - 1))
    other = (reference.log() + small_world.rewards / BETA).softmax(-1)
    found = small_world.distribution(model)
    distances = [float((found - expected).abs().sum() / 2) for expected in (best, reference, other)]
    assert distances[0] < 0.02
    assert distances[1] > 0.2 and distances[2] > 0.05  # there was something to learn, and it is this one
