"""Every policy gradient against its paper's equation in loops, where it starts, what it samples and what it refuses."""

import math

import pytest
import torch

from rlhf_core.errors import UserError

RATIO_ALGORITHMS = ("ppo", "reinforce", "reinforce_pp", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo")
LONGEST = 8


def assert_ratio_is_one(started):
    batch = started.algorithm.collect(0)
    for part in next(iter(started.algorithm.minibatches(batch))):
        loss = started.algorithm.loss(part)
        for name, expected in (("ratio_max", 1), ("ratio_mean", 1), ("approx_kl", 0), ("clip_frac", 0)):
            assert float(loss.metrics[name]) == pytest.approx(expected, abs=2e-5), name
        assert loss.metrics["first_ratio_max"] == loss.metrics["ratio_max"]
    return batch


@pytest.mark.parametrize("name", RATIO_ALGORITHMS)
def test_the_ratio_is_one_with_learned_positions_at_a_temperature(begun, name):
    words = ["rollout.temperature=0.6", "trainer.microbatch_tokens=60", "rollout.batch_size=6"]
    batch = assert_ratio_is_one(begun(name, *words, kind="gpt2"))
    assert batch.metrics["kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", RATIO_ALGORITHMS)
def test_the_ratio_is_one_with_adapters(begun, name):
    started = begun(name, "policy.lora.rank=4", "rollout.temperature=1.3")
    with torch.no_grad():  # at the start they do nothing
        for key, parameter in started.algorithm.policy.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.1)
    batch = assert_ratio_is_one(started)
    assert abs(batch.metrics["kl"]) > 0.1  # the reference has them off


@pytest.mark.parametrize("name", RATIO_ALGORITHMS)
def test_a_constant_reward_without_kl_moves_nothing(begun, name):
    """Every advantage is 0; PPO's critic has yet to learn the constant, and REINFORCE its moving mean."""
    started = begun(name, "algorithm.kl_coef=0", "algorithm.kl_in=reward", "algorithm.kl_estimator=k1",
                    *(["algorithm.overlong_buffer=0"] if name == "dapo" else []),
                    *(["algorithm.lam=1"] if name == "ppo" else []))  # fmt: skip
    started.run.reward.score = lambda samples: torch.full((len(samples),), 0.3)
    gradients, metrics = started.gradients()
    policy = {key: gradient for key, gradient in gradients.items() if not key.startswith("critic.")}
    assert policy and max(float(gradient.abs().max()) for gradient in policy.values()) < 1e-6
    assert float(metrics["policy_loss"]) == pytest.approx(0, abs=1e-6)


def clipped(low, high, dual=None):
    def objective(ratio, advantage, logprob):
        value = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
        return max(value, dual * advantage) if dual and advantage < 0 else value

    return objective


def weighted(low, high):
    return lambda ratio, advantage, logprob: min(max(ratio, 1 - low), 1 + high) * advantage * logprob


def plain(ratio, advantage, logprob):
    return ratio * advantage


TOKEN, SEQUENCE, SUM, CONSTANT = "mean of tokens", "mean of responses' means", "mean of responses' sums", "over longest"
PAPERS = {
    "ppo": ([], clipped(0.2, 0.2), TOKEN),
    "ppo, clip higher and dual": (["clip=0.1", "clip_high=0.3", "dual_clip=1.2"], clipped(0.1, 0.3, 1.2), TOKEN),
    "reinforce": ([], plain, SUM),
    "rloo": ([], plain, SUM),
    "reinforce_pp": ([], clipped(0.2, 0.2), TOKEN),
    "grpo": ([], clipped(0.2, 0.2), SEQUENCE),
    "grpo, clip higher and dual": (["clip=0.1", "clip_high=0.3", "dual_clip=1.2"], clipped(0.1, 0.3, 1.2), SEQUENCE),
    "grpo, no room above": (["clip_high=0"], clipped(0.2, 0.0), SEQUENCE),
    "dr_grpo": ([], clipped(0.2, 0.2), CONSTANT),
    "dapo": ([], clipped(0.2, 0.28), TOKEN),
    "gspo": ([], clipped(3e-4, 4e-4), SEQUENCE),
    "cispo": ([], weighted(1.0, 4.0), TOKEN),
    "cispo, narrow": (["clip=0.1", "clip_high=0.2"], weighted(0.1, 0.2), TOKEN),
}
"""Overrides, the objective of a token, and how tokens become one number."""


def in_loops(case, old, new, beta):
    """The policy loss and β times the mean k3, from log-probs of a policy that has moved."""
    _, objective, how = PAPERS[case]
    advantages = old.advantages.double()
    if old.moments is not None:
        chosen = advantages[old.mask]
        advantages = (advantages - chosen.mean()) / (chosen.var(correction=0) + 1e-8).sqrt()
    weights = torch.ones_like(advantages) if old.importance is None else old.importance.double()
    columns = (new, old.logprobs.double(), old.ref_logprobs.double(), advantages, weights)
    responses = []
    for *row, mask in zip(*map(old.packed.split, (*columns, old.mask)), strict=True):
        logprobs, before, reference, values, importance = (column[mask].tolist() for column in row)
        ratios = [math.exp(one - other) for one, other in zip(logprobs, before, strict=True)]
        if case.startswith("gspo"):
            ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)
        terms = [
            weight * objective(*token) for weight, *token in zip(importance, ratios, values, logprobs, strict=True)
        ]
        gaps = [given - now for given, now in zip(reference, logprobs, strict=True)]
        responses.append((terms, [math.exp(gap) - gap - 1 for gap in gaps]))

    def mean(rows):
        sums = [sum(row) for row in rows]
        return {
            TOKEN: sum(sums) / sum(map(len, rows)),
            SEQUENCE: sum(total / len(row) for total, row in zip(sums, rows, strict=True)) / len(rows),
            SUM: sum(sums) / len(rows),
            CONSTANT: sum(sums) / (len(rows) * LONGEST),
        }[how]

    return -mean([terms for terms, _ in responses]), beta * mean([kl for _, kl in responses])


@pytest.mark.parametrize("place", ["reward", "loss"])
@pytest.mark.parametrize("cap", [None, 1.1])
@pytest.mark.parametrize("case", PAPERS)
def test_the_loss_is_the_papers(begun, case, cap, place, move, may_end):
    """Of a policy that has moved from the one that sampled, and that from its reference; responses of all lengths."""
    beta = 0.3
    words = [f"algorithm.{word}" for word in PAPERS[case][0]]
    words += [f"algorithm.kl_coef={beta}", f"algorithm.kl_in={place}", "algorithm.kl_estimator=k3"]
    words += [] if cap is None else [f"algorithm.importance_cap={cap}"]
    started = begun(case.split(",")[0], *words)
    algorithm = started.algorithm
    may_end(algorithm)
    move(algorithm.reference.model, seed=1)
    if cap is not None:
        off(started)
    batch = algorithm.collect(0)
    move(algorithm.policy.model)
    (part,) = next(iter(algorithm.minibatches(batch)))
    loss, old = algorithm.loss(part), part.experience
    with torch.no_grad():
        new = algorithm.policy.logprobs(old.packed).double() * old.mask
    policy_loss, kl = in_loops(case, old, new, beta)
    lengths = old.per_sequence(old.mask.float())
    assert float(lengths.min()) < float(lengths.max()) and part.tokens == int(lengths.sum())
    assert (new - old.logprobs)[old.mask].abs().max() > math.log(1.3)  # there is something to clip
    assert float(loss.metrics["policy_loss"]) == pytest.approx(policy_loss, rel=2e-4, abs=2e-5)
    if place == "reward":
        assert "kl_loss" not in loss.metrics
    else:
        assert kl > 1e-3
        assert beta * float(loss.metrics["kl_loss"]) == pytest.approx(kl, rel=1e-3)
    if not case.startswith("ppo"):  # which has a critic's loss too
        expected = policy_loss + (kl if place == "loss" else 0)
        assert float(loss.value.detach()) == pytest.approx(expected, rel=2e-4, abs=2e-5)


def off(started, size=0.3):
    """Let the rollout engine say other log-probs than those it sampled by."""
    generate = started.run.rollout.generate

    def wrong(*words):
        rollout = generate(*words)
        generator = torch.Generator().manual_seed(5)
        for row in rollout.logprobs:
            row += size * torch.randn(row.shape, generator=generator)
        return rollout

    started.run.rollout.generate = wrong


@pytest.mark.parametrize("cap", [0.9, 1.2, 100.0])
def test_weights_correct_for_an_engine_that_computes_otherwise(begun, cap):
    started = begun("grpo", f"algorithm.importance_cap={cap}", "rollout.temperature=1.2")
    off(started)
    scored = started.algorithm.sample(0)
    batch = assert_ratio_is_one(started)
    old = batch.experience
    with torch.no_grad():
        trained = started.algorithm.policy.logprobs(scored.packed, 1.2)
    gap = (trained - scored.logprobs)[scored.mask]
    assert float(gap.max()) > 0.3 and float(gap.min()) < -0.3
    torch.testing.assert_close(old.logprobs[old.mask], trained[old.mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(old.importance[old.mask], gap.exp().clamp(max=cap), rtol=1e-4, atol=0)
    assert not old.importance[~old.mask].any() and not old.logprobs[~old.mask].any()
    assert batch.metrics["importance_mean"] == pytest.approx(float(gap.exp().clamp(max=cap).mean()), rel=1e-4)


def test_without_a_cap_the_engines_log_probs_are_the_old_ones(begun):
    started = begun("grpo")
    off(started)
    scored, batch = started.algorithm.sample(0), started.algorithm.collect(0)
    assert torch.equal(batch.experience.logprobs, scored.logprobs) and batch.experience.importance is None
    with pytest.raises(AssertionError):
        assert_ratio_is_one(started)


def test_the_moving_baseline_is_the_mean_of_all_rewards_before(begun, move):
    started = begun("reinforce", "algorithm.kl_coef=0.2")
    algorithm, seen = started.algorithm, []
    move(algorithm.reference.model, 0.05)
    for step in range(4):
        evaluated = algorithm.evaluate(step)  # leaves no trace
        old = algorithm.collect(step).experience
        rewards = [
            float(score) - 0.2 * float(kl) for score, kl in zip(old.scores, old.per_sequence(old.kl), strict=True)
        ]
        first = [row[mask][0] for row, mask in zip(
            old.packed.split(old.advantages), old.packed.split(old.mask), strict=True)]  # fmt: skip
        for place, (reward, advantage) in enumerate(zip(rewards, first, strict=True)):
            others = [other for index, other in enumerate(rewards) if index != place]
            baseline = sum(seen or others) / len(seen or others)
            assert float(advantage) == pytest.approx(reward - baseline, abs=1e-4)
        seen += rewards
        assert math.isfinite(evaluated["kl"])
        state = algorithm.state_dict()
        assert state == {"kl_coef": 0.2, "seen": len(seen), "mean": pytest.approx(sum(seen) / len(seen), abs=1e-4)}


# What is refused ------------------------------------------------------------------------------------------------------

NEEDS_TWO = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "online_dpo")
K1_IN_LOSS = ["algorithm.kl_in=loss", "algorithm.kl_estimator=k1", "algorithm.kl_coef=0.1"]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        *[(name, ["algorithm.responses=1"], "algorithm.responses: got 1, but ") for name in NEEDS_TWO],
        ("reinforce_pp", ["algorithm.baseline=group"], "algorithm.responses: got 1, but algorithm.baseline=group"),
        *[(name, K1_IN_LOSS, "algorithm.kl_estimator: k1 in the loss has a gradient") for name in RATIO_ALGORITHMS],
        *[(name, ["rollout.top_p=0.9"], "rollout.top_p: got 0.9, but training needs 1.0") for name in RATIO_ALGORITHMS],
        ("rloo", ["algorithm.kl_in=prompt"], "algorithm.kl_in: got 'prompt', expected reward or loss"),
        ("rloo", ["algorithm.kl_estimator=k4"], "algorithm.kl_estimator: got 'k4', expected k1 or k2 or k3"),
        ("online_dpo", ["algorithm.kl_in=loss"], "algorithm.kl_in: got 'loss', expected reward"),
        ("best_of_n", ["algorithm.kl_in=loss"], "algorithm.kl_in: got 'loss', expected reward"),
        ("reinforce", ["algorithm.baseline=last"], "algorithm.baseline: got 'last', expected moving or batch or none"),
        ("reinforce_pp", ["algorithm.baseline=last"], "algorithm.baseline: got 'last', expected none or group"),
        ("ppo", ["algorithm.importance_cap=0"], "algorithm.importance_cap: got 0.0, expected more than 0, or null"),
        ("online_dpo", ["algorithm.importance_cap=2"], "algorithm.importance_cap: OnlineDPO weights no tokens"),
        ("best_of_n", ["algorithm.importance_cap=2"], "algorithm.importance_cap: BestOfN weights no tokens"),
        ("gspo", ["algorithm.importance_cap=-1"], "algorithm.importance_cap: got -1.0, expected more than 0, or null"),
        ("online_dpo", ["algorithm.beta=0"], "algorithm.beta: got 0.0, expected more than 0"),
        ("dapo", ["algorithm.sampling_rounds=0"], "algorithm.sampling_rounds: got 0, expected at least 1"),
        ("dapo", ["algorithm.overlong_buffer=-1"], "algorithm.overlong_buffer: got -1, expected at least 0"),
        ("cispo", ["algorithm.dual_clip=3"], "algorithm.dual_clip: got 3.0, but CISPO clips only weights; set null"),
    ],
)  # fmt: skip
def test_refusals(begun, name, overrides, message):
    with pytest.raises(UserError) as caught:
        begun(name, *overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*RATIO_ALGORITHMS, "online_dpo", "best_of_n"])
def test_a_reward_is_needed(start, ppo, name):
    words = [word for word in ppo("llama") if not word.startswith("reward")]
    with pytest.raises(UserError, match=r"^reward: null, but this algorithm scores what it samples"):
        start(*words, f"algorithm={name}", "reward=null")
