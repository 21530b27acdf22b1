"""What preference losses converge to, in a world of eight words where every answer is known.

People choose by Bradley–Terry with utilities u: word i before word j with probability σ(u_i − u_j); rankings of more
words are drawn by Plackett–Luce, whose pairs are Bradley–Terry's. DPO's minimum is then where β·log π/π_ref differs
between words as the utilities do that make the rankings most likely, which is to say at π ∝ π_ref·exp(u/β).
"""

import json

import pytest
import torch

from rlhf_core.trainer import Trainer

WORDS = ["<end>", "ask", "one", "two", "three", "four", "five", "six"]


def drawn(utilities, size, count, generator):
    """Rankings of ``size`` of the words: their order by utility and a Gumbel number is Plackett–Luce's."""
    rankings = []
    for _ in range(count):
        words = torch.randperm(len(utilities), generator=generator)[:size]
        noise = -torch.rand(size, generator=generator, dtype=torch.float64).log().neg().log()
        rankings.append(words[(utilities[words].double() + noise).argsort(descending=True)].tolist())
    return rankings


def wins(rankings):
    """``[8, 8]`` how often each word came before each other one."""
    found = torch.zeros(len(WORDS), len(WORDS), dtype=torch.float64)
    for ranking in rankings:
        for place, better in enumerate(ranking):
            for worse in ranking[place + 1 :]:
                found[better, worse] += 1
    return found


def most_likely(won):
    """Utilities with a mean of 0 that maximise Σ won_ij·log σ(u_i − u_j), by Newton's method."""
    u = torch.zeros(len(won), dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(u[:, None] - u[None])
        gradient = (won * (1 - p) - won.T * p).sum(1)
        weights = (won + won.T) * p * (1 - p)
        hessian = torch.diag(weights.sum(1)) - weights
        u = u + torch.linalg.solve(hessian + 1.0, gradient)  # the ones fix the mean, which nothing else does
        u = u - u.mean()
    return u


def write(folder, rankings):
    """A file of rankings of words."""
    rows = [
        {"prompt": "ask", "responses": [WORDS[word] for word in ranking], "ranks": list(range(len(ranking)))}
        for ranking in rankings
    ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.ranking_files=[{folder / 'rankings.jsonl'}]"


def trained(start, small_world, rankings, *words):
    """Log-probs of the eight words before and after training on all rankings at each step."""
    file = write(small_world.folder, rankings)
    started = start(
        *words, *small_world.overrides, file, "algorithm.max_length=2", "algorithm.batch_size=100000",
        "algorithm.epochs=80", "algorithm.optimizer.lr=0.03", "algorithm.optimizer.warmup_steps=0",
        "trainer.log_every=50",
    )  # fmt: skip
    trainer = Trainer(started.run, started.algorithm)
    before = small_world.distribution(started.algorithm.policy.model).log()
    trainer.fit()
    return before.double(), small_world.distribution(started.algorithm.policy.model).log().double()


def test_the_estimate_recovers_what_rankings_were_drawn_from():
    utilities = torch.tensor([0.0, -1.0, 1.0, 0.5, -0.5, 0.25, 2.0, -2.0])
    found = most_likely(wins(drawn(utilities, 3, 10_000, torch.Generator().manual_seed(0))))
    torch.testing.assert_close(found, utilities.double() - utilities.double().mean(), rtol=0, atol=0.09)


@pytest.mark.parametrize(("size", "count"), [(2, 300), (5, 60)])
def test_dpo_recovers_the_utilities_people_chose_by(start, small_world, size, count):
    beta, utilities = 0.7, small_world.rewards
    truth = utilities.double() - utilities.double().mean()
    rankings = drawn(utilities, size, count, torch.Generator().manual_seed(5))
    best = most_likely(wins(rankings))
    before, after = trained(start, small_world, rankings, "algorithm=dpo", f"algorithm.beta={beta}")
    rewards = beta * (after - before)
    rewards = rewards - rewards.mean()
    torch.testing.assert_close(rewards, best, rtol=0, atol=0.03)
    # What so many rankings tell, of 15 draws: the root of the mean squared error is near 0.25 for both sizes.
    others = (drawn(utilities, size, count, torch.Generator().manual_seed(seed)) for seed in range(100, 115))
    expected = float(torch.stack([(most_likely(wins(one)) - truth).square().mean() for one in others]).mean().sqrt())
    assert 0.1 < expected < 0.5
    assert float((rewards - truth).square().mean().sqrt()) < 2 * expected

    optimum = (before + best / beta).softmax(-1)
    distances = [float((after.exp() - other).abs().sum() / 2) for other in (optimum, before.exp())]
    assert distances[0] < 0.01 and distances[1] > 0.3
    assert float((after.exp() - (before + truth / beta).softmax(-1)).abs().sum() / 2) < 0.15


def test_without_a_reference_the_policy_is_that_of_the_utilities_alone(start, small_world):
    rankings = drawn(small_world.rewards, 4, 100, torch.Generator().manual_seed(5))
    _, after = trained(
        start, small_world, rankings, "algorithm=dpo", "algorithm.beta=1.5", "algorithm.reference_free=true"
    )
    optimum = (most_likely(wins(rankings)) / 1.5).softmax(-1)
    assert float((after.exp() - optimum).abs().sum() / 2) < 0.01


def test_ipo_is_a_regression_on_who_wins_how_often(start, small_world):
    """With every pair compared n times, the least squares are s_i = 1/8 Σ_j (2·p_ij − 1)/(2τ), never infinite."""
    tau, times = 0.5, 4
    rankings = []
    for first in range(8):
        for second in range(first + 1, 8):
            ahead = times if first + second > 7 else 3  # some pairs have never been decided otherwise
            rankings += [[first, second]] * ahead + [[second, first]] * (times - ahead)
    share = wins(rankings) / times
    slopes = ((2 * share - 1) / (2 * tau)).fill_diagonal_(0).mean(1)
    before, after = trained(start, small_world, rankings, "algorithm=ipo", f"algorithm.beta={tau}")
    found = after - before
    torch.testing.assert_close(found - found.mean(), slopes - slopes.mean(), rtol=0, atol=0.02)
    assert float(slopes.max() - slopes.min()) > 1
