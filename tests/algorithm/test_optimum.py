"""Every policy gradient against worlds whose answer is known: p*(y) ∝ p_ref(y) · exp(r(y)/β).

One world has responses of one word, the other of up to two: there the KL of the first word has to be weighed against
what the second can still gain, so a wrong credit assignment shows.
"""

import pytest
import torch

from rlhf_core.trainer import Trainer

BETA = 0.7
WORDS = 8  # word 0 ends a response
KL_IN_REWARD = ["algorithm.kl_in=reward", "algorithm.kl_estimator=k1"]
KL_IN_LOSS = ["algorithm.kl_in=loss", "algorithm.kl_estimator=k2"]


def sized(prompts, responses):
    return [f"algorithm.batch_size={prompts}", f"algorithm.responses={responses}"]


GROUPS = [*sized(32, 8), *KL_IN_REWARD]


def trained(start, small_world, reward, name, steps, *words):
    """The policy after so many steps of an algorithm."""
    started = start(
        f"algorithm={name}", *small_world.overrides, f"algorithm.kl_coef={BETA}", f"algorithm.steps={steps}",
        "algorithm.optimizer.lr=0.01", "algorithm.optimizer.schedule=linear", *words,
    )  # fmt: skip
    started.run.settings.reward = reward
    trainer = Trainer(started.run, started.algorithm)
    trainer.fit()
    return started.algorithm.policy.model


def variation(first, second):
    """Total variation between two distributions."""
    return float((first - second).abs().sum() / 2)


def tilted(reference, rewards, beta):
    """p_ref · exp(r/β), made to add up to 1."""
    return (reference.log() + rewards / beta).softmax(-1)


ONE_WORD = {
    "ppo": (30, [*sized(256, 1), "algorithm.minibatches_a_pass=1", "algorithm.epochs=3"]),
    "ppo, two minibatches": (30, [*sized(256, 1), "algorithm.minibatches_a_pass=2", "algorithm.epochs=1"]),
    "reinforce": (40, sized(256, 1)),
    "reinforce, mean of the batch": (30, [*sized(256, 1), "algorithm.baseline=batch"]),
    "reinforce, no baseline": (50, [*sized(512, 1), "algorithm.baseline=none"]),
    "reinforce, kl in the loss": (60, [*sized(512, 2), *KL_IN_LOSS]),
    "rloo": (30, sized(64, 4)),
    "rloo, kl in the loss": (60, [*sized(256, 4), *KL_IN_LOSS]),
    "reinforce_pp": (40, sized(256, 1)),
    "reinforce_pp, mean of the group": (30, [*sized(32, 8), "algorithm.baseline=group"]),
    "grpo": (30, [*GROUPS, "algorithm.scale_by_std=false"]),
    "grpo, over the std": (30, [*GROUPS, "algorithm.scale_by_std=true"]),
    "dr_grpo": (30, GROUPS),
    "dapo": (30, [*GROUPS, "algorithm.overlong_buffer=0", "algorithm.sampling_rounds=1"]),
    "dapo, sampled anew": (30, [*GROUPS, "algorithm.overlong_buffer=0"]),
    "gspo": (30, GROUPS),
    "cispo": (30, GROUPS),
}
"""Steps and options. With the KL in the reward every A is 0 at p*, so what scales A, as a group's std, keeps p*."""


@pytest.mark.parametrize("case", ONE_WORD)
def test_responses_of_one_word(start, small_world, case):
    steps, words = ONE_WORD[case]
    reference = small_world.distribution(small_world.start())
    optimum = tilted(reference, small_world.rewards, BETA)
    assert variation(reference, optimum) > 0.3  # there is something to learn
    model = trained(start, small_world, small_world.reward, case.split(",")[0], steps, *words)
    assert variation(small_world.distribution(model), optimum) < 0.02


NO_STD = "algorithm.scale_by_std=false"
"""With the KL in the loss A is not 0 at p*: it balances β·log π/π_ref, and what a group's std makes of it does not."""


WEAKENED = [*sized(256, 4), *KL_IN_LOSS, NO_STD]


def test_a_group_s_mean_that_holds_the_response_itself_weakens_the_reward_beside_a_kl_in_the_loss(start, small_world):
    """Its expected gradient is that of (1 − 1/G)·E[r] − β·KL, whose optimum is the one of β′ = β·G/(G − 1)."""
    reference = small_world.distribution(small_world.start())
    found = small_world.distribution(trained(start, small_world, small_world.reward, "grpo", 60, *WEAKENED))
    own, other = (tilted(reference, small_world.rewards, beta) for beta in (BETA * 4 / 3, BETA))
    assert variation(own, other) > 0.05  # so that they can be told apart
    assert variation(found, own) < 0.02
    assert variation(found, other) > 0.05


@pytest.mark.parametrize("name", ["dr_grpo", "dapo", "gspo", "cispo"])
def test_the_others_have_the_same_gradient_there(start, small_world, name):
    """Of responses of one word, at the first update of a rollout, the objectives are one: so the optimum is, too."""
    overlong = ["algorithm.overlong_buffer=0", "algorithm.sampling_rounds=1"] if name == "dapo" else []

    def gradients(name, *words):
        stage = start(f"algorithm={name}", *small_world.overrides, *WEAKENED, f"algorithm.kl_coef={BETA}", *words)
        stage.run.settings.reward = small_world.reward
        with torch.no_grad():  # away from the reference, where the KL has a gradient
            for number, parameter in enumerate(stage.module.parameters()):
                parameter.mul_(1 + 0.05 * (number % 3))
        return stage.gradients()[0]

    for one, other in zip(gradients("grpo").values(), gradients(name, *overlong).values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_whitening_puts_a_kl_in_the_loss_on_the_scale_of_standard_deviations(start, small_world):
    """A/σ beside β·KL is A beside β·σ·KL: the optimum is that of β′ = β·σ, σ the reward's own spread there.

    A policy that concentrates has a smaller σ, so a smaller β′: below β = 1 nothing here stops it short of one word.
    """
    beta = 1.5
    reference, rewards = small_world.distribution(small_world.start()), small_world.rewards
    words = [*sized(512, 2), *KL_IN_LOSS, "algorithm.minibatches_a_pass=1", f"algorithm.kl_coef={beta}"]
    found = small_world.distribution(trained(start, small_world, small_world.reward, "reinforce_pp", 60, *words))
    own = reference
    for _ in range(200):
        spread = ((own * rewards.square()).sum() - (own * rewards).sum().square()).sqrt()
        own = (own + tilted(reference, rewards, beta * spread)) / 2
    assert variation(own, tilted(reference, rewards, beta)) > 0.05
    assert variation(found, own) < 0.02


FIRST = torch.tensor([0.3, -1.0, 1.0, 0.5, -0.5, 0.25, 0.0, -1.0])
SECOND = torch.tensor([0.5, 1.0, -1.0, 0.0, 1.5, -0.5, 0.25, -1.5])
SIGN = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0])  # whether a first word likes what SECOND says
REWARDS = FIRST[:, None] + SIGN[:, None] * SECOND  # [first, second]; where the first ends the response: FIRST[0]


class TwoWords:
    """A reward that reads responses of up to two words."""

    def setup(self, run):
        """Nothing."""

    def score(self, samples):
        """What the tables say."""
        rows = samples.response_ids
        return torch.stack([FIRST[0] if len(row) == 1 else REWARDS[row[0], row[1]] for row in rows])


def responses(model):
    """``[1 + 7·8]`` probabilities: of the end at once, then of each first and second word."""
    with torch.no_grad():
        first = model(torch.tensor([[1]])).logits[0, -1].float().softmax(-1)
        second = model(torch.tensor([[1, word] for word in range(1, WORDS)])).logits[:, -1].float().softmax(-1)
    return torch.cat([first[:1], (first[1:, None] * second).flatten()])


def test_the_responses_of_up_to_two_words_add_up_to_one(small_world):
    found = responses(small_world.start())
    assert len(found) == 57
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)


TWO_WORDS = {
    "ppo": (70, [*sized(256, 1), "algorithm.minibatches_a_pass=1", "algorithm.lam=1.0"]),
    "reinforce": (90, sized(256, 1)),
    "rloo": (80, sized(64, 4)),
    "reinforce_pp": (60, [*sized(512, 2), "algorithm.minibatches_a_pass=1"]),
    "grpo": (90, [*sized(32, 8), *KL_IN_REWARD, NO_STD]),
}


@pytest.mark.parametrize("name", TWO_WORDS)
def test_responses_of_up_to_two_words(start, small_world, name):
    steps, words = TWO_WORDS[name]
    reference = responses(small_world.start())
    optimum = tilted(reference, torch.cat([FIRST[:1], REWARDS[1:].flatten()]), BETA)
    assert variation(reference, optimum) > 0.3
    model = trained(start, small_world, TwoWords(), name, steps, *words, "rollout.max_new_tokens=2")
    noisy = name == "reinforce_pp"  # one baseline for first and second words
    assert variation(responses(model), optimum) < (0.04 if noisy else 0.03)
