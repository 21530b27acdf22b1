"""CORRECTNESS 9: the KL in the reward and the KL in the loss are two options; each is there alone when chosen."""

import pytest
import torch

from rlhf_core.errors import UserError

PLACES = {"reward": ["algorithm.kl_in=reward", "algorithm.kl_estimator=k1"],
          "loss": ["algorithm.kl_in=loss", "algorithm.kl_estimator=k2"]}  # fmt: skip
BETA = 0.7


def moved(started):
    """With a reference that the policy has moved away from."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in started.algorithm.reference.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return started.algorithm


@pytest.fixture
def losses(start, ppo):
    def make(name, place, coef):
        words = [*PLACES[place], f"algorithm.kl_coef={coef}", "trainer.microbatch_tokens=100000"]
        started = start(*ppo("llama"), f"algorithm={name}", "algorithm.batch_size=8", *words,
                        "algorithm.minibatches_a_pass=1")  # fmt: skip
        algorithm = moved(started)
        batch = algorithm.collect(0)
        (part,) = next(iter(algorithm.minibatches(batch)))
        order = torch.cat([part.experience.scores, part.experience.advantages])
        return batch, algorithm.loss(part), part, order

    return make


@pytest.mark.parametrize("name", ["ppo", "rloo", "reinforce_pp"])
def test_the_kl_is_where_it_was_asked_for_and_nowhere_else(losses, name):
    found = {(place, coef): losses(name, place, coef) for place in PLACES for coef in (0.0, BETA)}
    plain = found["reward", 0.0][0].experience
    for place in PLACES:
        assert torch.equal(found[place, 0.0][0].experience.advantages, plain.advantages)  # β = 0 is the same for both
    assert torch.equal(found["loss", BETA][0].experience.advantages, plain.advantages)
    in_reward = found["reward", BETA][0].experience
    assert (in_reward.advantages - plain.advantages).abs().max() > 0.1

    with_kl, without = (found["loss", coef][1].value.detach() for coef in (BETA, 0.0))
    part = found["loss", BETA][2]
    d = (part.experience.logprobs - part.experience.ref_logprobs)[part.experience.mask].double()
    count = part.sequences if name == "rloo" else part.tokens  # a mean over responses of sums, or over tokens
    assert float(with_kl - without) == pytest.approx(BETA * float((d * d / 2).sum()) / count, rel=1e-3)
    assert "kl_loss" in found["loss", BETA][1].metrics and "kl_loss" not in found["reward", BETA][1].metrics


def test_in_the_reward_each_token_pays_its_own(losses):
    """PPO's advantages are linear in the rewards, and its critic says 0: A − A₀ = Σ_k λ^{k−t}·(−β·KL_k)."""
    plain, shaped = (losses("ppo", "reward", coef)[0].experience for coef in (0.0, BETA))
    for row in zip(*(shaped.packed.split(values) for values in (
        shaped.advantages - plain.advantages, shaped.logprobs - shaped.ref_logprobs, shaped.mask
    )), strict=True):  # fmt: skip
        difference, kl, mask = row
        expected, carried = [], 0.0
        for value in reversed(kl[mask].double().tolist()):
            carried = -BETA * value + 0.95 * carried
            expected.append(carried)
        torch.testing.assert_close(difference[mask].double(), torch.tensor(expected[::-1]).double(), rtol=0, atol=1e-4)


def test_k1_in_the_loss_is_refused_for_it_has_no_gradient(start, ppo):
    with pytest.raises(UserError, match=r"^algorithm.kl_estimator: k1 in the loss has a gradient of 0 in expectation"):
        start(*ppo("llama", "algorithm.kl_in=loss", "algorithm.kl_estimator=k1"))
