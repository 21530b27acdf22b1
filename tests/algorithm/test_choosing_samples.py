"""Algorithms that choose among what they sampled: DAPO by differences, online DPO pairs, best of n the best."""

import math

import pytest
import torch

from rlhf_core.trainer import Trainer


def scripted(started, *rounds):
    """Scores of each group by the round: one digit a group, 0 for all alike; returns the calls' prompts."""
    asked = []

    def score(samples):
        row = rounds[min(len(asked), len(rounds) - 1)]
        asked.append([tuple(ids) for ids in samples.prompt_ids])
        size = len(samples) // len(row)
        return torch.tensor([1000 * len(asked) + float(flag) * (place % 2) for flag in row for place in range(size)])

    started.run.reward.score = score
    return asked


def prompts_of(experience):
    return [
        tuple(row[~mask].tolist())
        for row, mask in zip(
            experience.packed.split(experience.packed.tokens), experience.packed.split(experience.mask), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("rounds", "calls", "kept", "flat"),
    [
        (["1111"], 1, [(0, 0), (0, 1), (0, 2), (0, 3)], 0),
        (["1010", "0111"], 2, [(0, 0), (0, 2), (1, 1), (1, 2)], 0),
        (["0000", "0100", "1011"], 3, [(1, 1), (2, 0), (2, 2), (2, 3)], 0),
        (["0100", "0000", "0001"], 3, [(0, 1), (2, 3), (2, 0), (2, 1)], 0.5),  # what is missing stays flat
        (["0000"], 3, [(2, 0), (2, 1), (2, 2), (2, 3)], 1),
    ],
)
def test_dapo_samples_anew_what_teaches_nothing(begun, rounds, calls, kept, flat):
    started = begun("dapo", "algorithm.sampling_rounds=3", "algorithm.overlong_buffer=0")
    asked = scripted(started, *rounds)
    batch = started.algorithm.collect(5)
    assert len(asked) == calls
    assert prompts_of(batch.experience) == [asked[number][4 * group] for number, group in kept for _ in range(4)]
    assert batch.experience.scores.tolist() == [
        1000 * (number + 1) + float(rounds[min(number, len(rounds) - 1)][group]) * (place % 2)
        for number, group in kept for place in range(4)
    ]  # fmt: skip
    assert batch.metrics["flat_groups"] == flat
    assert len({prompt for call in asked for prompt in call}) == 4 * calls  # new prompts each time
    for part in next(iter(started.algorithm.minibatches(batch))):
        assert torch.isfinite(started.algorithm.loss(part).value)


def test_dapo_without_any_difference_does_nothing(begun):
    started = begun("dapo", "algorithm.sampling_rounds=2", "algorithm.overlong_buffer=0")
    scripted(started, "0000")
    gradients, _ = started.gradients()
    assert not any(gradient.any() for gradient in gradients.values())


def test_dapo_punishes_what_is_overlong(begun, may_end):
    """Eq. 13 with L_max = 8 and L_cache = 3: 0 up to 5 tokens, −1 at 8."""
    algorithm = begun("dapo", "algorithm.overlong_buffer=3", "algorithm.sampling_rounds=1").algorithm
    lengths = torch.tensor([0.0, 1, 4, 5, 6, 7, 8, 9])
    expected = torch.tensor([0, 0, 0, 0, -1 / 3, -2 / 3, -1, -1])
    torch.testing.assert_close(algorithm.overlong(lengths), expected)
    may_end(algorithm)
    scored = algorithm.sample(0)
    old = algorithm.experience(scored, 4)
    counts = old.per_sequence(old.mask.float())
    assert {True, False} == set((counts > 5).tolist())
    torch.testing.assert_close(old.scores, scored.scores + algorithm.overlong(counts))
    groups = old.scores.view(-1, 4).double()
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, correction=0, keepdim=True) + 1e-4)
    first = [row[mask][0] for row, mask in zip(
        old.packed.split(old.advantages), old.packed.split(old.mask), strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.stack(first), expected.flatten().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 100_000])
def test_online_dpo_is_the_papers_on_best_and_worst(begun, budget, move):
    started = begun("online_dpo", "algorithm.beta=0.4", f"trainer.microbatch_tokens={budget}")
    algorithm = started.algorithm
    move(algorithm.reference.model, 0.05, seed=1)
    batch = algorithm.collect(0)
    move(algorithm.policy.model)
    old = batch.experience
    with torch.no_grad():
        ratios = old.per_sequence(algorithm.policy.logprobs(old.packed) - algorithm.reference.logprobs(old.packed))
    terms, margins = [], []
    for start in range(0, 16, 4):
        scores = old.scores[start : start + 4].tolist()
        best, worst = (start + scores.index(which(scores)) for which in (max, min))
        margins.append(0.4 * float(ratios[best] - ratios[worst]))
        terms.append(math.log1p(math.exp(-margins[-1])))
    (parts,) = algorithm.minibatches(batch)
    assert len(parts) == (4 if budget == 1 else 1)
    for part in parts:  # best and worst of a prompt side by side, never cut apart
        prompts, scores = prompts_of(part.experience), part.experience.scores
        assert prompts[::2] == prompts[1::2] and bool((scores[::2] > scores[1::2]).all())
    losses = [algorithm.loss(part) for part in parts]
    assert sum(float(loss.value.detach()) for loss in losses) == pytest.approx(sum(terms) / 4, rel=1e-4)
    weights = sum(loss.weight for loss in losses)
    margin = sum(loss.weight * float(loss.metrics["reward_margin"]) for loss in losses) / weights
    assert margin == pytest.approx(sum(margins) / 4, rel=1e-3, abs=1e-5)


def test_online_dpo_leaves_ties_out(begun):
    started = begun("online_dpo")
    scripted(started, "0110")
    batch = started.algorithm.collect(0)
    ((part,),) = started.algorithm.minibatches(batch)
    assert part.groups == 2
    assert sorted(part.experience.scores.tolist()) == [1000, 1000, 1001, 1001]
    assert float(started.algorithm.loss(part).value.detach()) == pytest.approx(math.log(2), rel=1e-5)
    scripted(started, "0000")
    assert list(started.algorithm.minibatches(started.algorithm.collect(0))) == []


def test_a_step_without_any_pair_is_a_step(start, ppo):
    words = ["algorithm=online_dpo", "algorithm.batch_size=4", "algorithm.steps=2"]
    started = start(*ppo("llama"), *words)
    started.run.reward.score = lambda samples: torch.ones(len(samples))
    trainer = Trainer(started.run, started.algorithm)
    before = [parameter.clone() for parameter in trainer.module.parameters()]
    trainer.fit()
    assert trainer.step == 2
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.module.parameters(), strict=True))


@pytest.mark.parametrize("kl_coef", [0.0, 5.0])
def test_best_of_n_imitates_the_best(begun, kl_coef, move, may_end):
    started = begun("best_of_n", f"algorithm.kl_coef={kl_coef}")
    algorithm = started.algorithm
    may_end(algorithm)
    move(algorithm.reference.model, 0.05)
    batch = algorithm.collect(0)
    old = batch.experience
    worth = (old.scores - kl_coef * old.per_sequence(old.kl)).tolist()
    best = [max(range(start, start + 4), key=worth.__getitem__) for start in range(0, 16, 4)]
    ((part,),) = algorithm.minibatches(batch)
    assert sorted(part.experience.scores.tolist()) == sorted(old.scores[best].tolist())
    chosen = [old.logprobs[old.packed.sequence == place].sum() for place in best]
    tokens = sum(int(old.mask[old.packed.sequence == place].sum()) for place in best)
    assert float(algorithm.loss(part).value.detach()) == pytest.approx(-float(sum(chosen)) / tokens, rel=1e-4)


def test_best_of_one_is_the_policy_itself(begun):
    started = begun("best_of_n", "algorithm.responses=1", "algorithm.batch_size=8")
    batch = started.algorithm.collect(0)
    ((part,),) = started.algorithm.minibatches(batch)
    assert sorted(part.experience.scores.tolist()) == sorted(batch.experience.scores.tolist())
    seen = []
    score = started.run.reward.score
    started.run.reward.score = lambda samples: (seen.append(score(samples)), seen[-1])[1]
    found = started.algorithm.best_of()
    assert found == {"best_of_1/reward": pytest.approx(float(seen[0].mean())), "best_of_1/kl": 0.0}
