"""Rewards of steps on the way, and tokens that a tool put into a response: which tokens they reach, in loops."""

import statistics

import pytest
import torch

from rlhf_core import plugins
from rlhf_core.contracts.rollout import Rollout

END = 0
RESPONSES = [[40, 41, 42, 43, END], [44, 45], [46, 47, 48, 49, 50, 51], [END], [], [52, 53, 54], [55, 56], [57, END]]
CHOSEN = ["11001", "11", "110010", "1", "", "011", "00", "11"]
"""Which tokens the policy chose; of one response it chose none."""
STEPS = [
    [(1, 0.5), (4, -1.0)], [(0, 2.0)], [(3, 1.0), (4, 0.25), (5, 0.5)], [], [], [(0, 3.0), (2, -0.5)], [(1, 9.0)],
    [(0, 1.0), (0, 0.5)],
]  # fmt: skip
"""(place, reward): some are on tokens that a tool put there, two on the same token."""
LANDS = [
    {1: 0.5, 4: -1.0}, {0: 2.0}, {1: 1.0, 4: 0.75}, {}, {}, {0: 3.0, 2: -0.5}, {1: 9.0}, {0: 1.5},
]  # fmt: skip
"""Where they count: at the last chosen token up to there; where it is, if there is none."""
SCORES = [1.0, -1.0, 0.5, 2.0, 7.0, 0.25, 5.0, -0.5]
BETA = 0.3


class Scripted:
    """A rollout engine with a tool; what it says of the tool's tokens is to be read by nobody."""

    temperature = top_p = 1.0
    max_new_tokens = 6

    def generate(self, model, prompts, generator):
        """The responses, with log-probs of −0.1, −0.2, …"""
        logprobs, chosen = [], [[flag == "1" for flag in flags] for flags in CHOSEN]
        for flags in chosen:
            row = -torch.arange(1.0, len(flags) + 1) / 10
            row[[not flag for flag in flags]] = float("nan")
            logprobs.append(row)
        stops = ["eos" if response[-1:] == [END] else "length" for response in RESPONSES]
        return Rollout(prompts, RESPONSES, logprobs, stops, chosen)


class Judged:
    """A reward of whole responses and of steps."""

    def setup(self, run):
        """Nothing."""

    def score(self, samples):
        """Of whole responses."""
        return torch.tensor(SCORES)

    def score_steps(self, samples):
        """Of steps."""
        return STEPS


@pytest.fixture
def begun(start, ppo):
    def make(name, *overrides):
        sizes = (8, 1) if name in ("ppo", "reinforce", "reinforce_pp") else (2, 4)
        words = [f"algorithm.batch_size={sizes[0]}", f"algorithm.responses={sizes[1]}", "algorithm.kl_estimator=k1",
                 "algorithm.kl_in=reward", f"algorithm.kl_coef={BETA}", "algorithm.epochs=1",
                 "algorithm.minibatches_a_pass=1", "trainer.microbatch_tokens=100000"]  # fmt: skip
        started = start(*ppo("llama"), f"algorithm={name}", *words, *overrides)
        started.run.settings.rollout, started.run.settings.reward = Scripted(), Judged()
        return started

    return make


def rows(experience, values):
    """One list of floats a response, without the prompt's."""
    split = zip(experience.packed.split(values), RESPONSES, strict=True)
    return [row[len(row) - len(response) :].double().tolist() for row, response in split]


def assert_rows(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    flat = [[value for row in table for value in row] for table in (found, expected)]
    assert flat[0] == pytest.approx(flat[1], abs=2e-5)


def own_rewards(experience):
    """Of each response: its chosen tokens, and the reward of each, by the tables above."""
    for place, (flags, kl) in enumerate(zip(CHOSEN, rows(experience, experience.kl), strict=True)):
        chosen = [t for t, flag in enumerate(flags) if flag == "1"]
        rewards = [LANDS[place].get(t, 0.0) - BETA * kl[t] + SCORES[place] * (t == chosen[-1]) for t in chosen]
        yield len(flags), chosen, rewards


def test_rewards_of_steps_land_on_the_last_token_that_was_chosen(begun):
    scored = begun("ppo").algorithm.sample(0)
    expected = [
        [lands.get(t, 0.0) for t in range(len(response))] for lands, response in zip(LANDS, RESPONSES, strict=True)
    ]
    found = zip(scored.packed.split(scored.rewards), scored.packed.split(scored.mask), RESPONSES, strict=True)
    for (rewards, mask, response), values, flags in zip(found, expected, CHOSEN, strict=True):
        prompt = len(rewards) - len(response)
        assert rewards.tolist() == [0.0] * prompt + values
        assert mask.tolist() == [False] * prompt + [flag == "1" for flag in flags]
    assert not scored.logprobs[~scored.mask].any()
    totals = [score + sum(reward for _, reward in steps) for score, steps in zip(SCORES, STEPS, strict=True)]
    assert scored.totals.tolist() == pytest.approx(totals)
    assert scored.metrics["reward"] == pytest.approx(statistics.fmean(totals))
    assert scored.metrics["reward_std"] == pytest.approx(statistics.pstdev(totals))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0)])
def test_ppo_in_loops(begun, gamma, lam):
    started = begun("ppo", f"algorithm.gamma={gamma}", f"algorithm.lam={lam}")
    torch.manual_seed(0)
    started.algorithm.critic.reset_head(0.5)
    old = started.algorithm.collect(0).experience
    values = rows(old, old.values)
    advantages, returns, flat = [], [], []
    for place, (length, chosen, rewards) in enumerate(own_rewards(old)):
        advantage, following = 0.0, 0.0
        row, back = [0.0] * length, [0.0] * length
        for t, reward in zip(reversed(chosen), reversed(rewards), strict=True):
            advantage = reward + gamma * following - values[place][t] + gamma * lam * advantage
            following = values[place][t]
            row[t], back[t] = advantage, advantage + following
            flat.append(advantage)
        advantages.append(row)
        returns.append(back)
    assert_rows(rows(old, old.advantages), advantages)
    assert_rows(rows(old, old.returns), returns)
    mean, var = old.moments
    assert float(mean) == pytest.approx(statistics.fmean(flat), abs=1e-5)
    assert float(var) == pytest.approx(statistics.pvariance(flat), rel=1e-4)
    assert not old.values[~old.mask].any() and len({value for row in values for value in row}) > 5


def test_reinforce_pp_in_loops(begun):
    old = begun("reinforce_pp", "algorithm.gamma=0.9").algorithm.collect(0).experience
    expected = []
    for length, chosen, rewards in own_rewards(old):
        row = [0.0] * length
        for number, t in enumerate(chosen):
            row[t] = sum(0.9**k * reward for k, reward in enumerate(rewards[number:]))
        expected.append(row)
    assert_rows(rows(old, old.advantages), expected)


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_grpos_process_supervision_in_loops(begun, scale_by_std):
    """Outcomes compared in the group, and, from each token on, steps compared with all the group's steps."""
    old = begun("grpo", f"algorithm.scale_by_std={scale_by_std}").algorithm.collect(0).experience
    kl = [sum(row) for row in rows(old, old.kl)]
    outcomes = [score - BETA * paid for score, paid in zip(SCORES, kl, strict=True)]
    expected = []
    for start in (0, 4):
        members = range(start, start + 4)
        steps = [reward for member in members for reward in LANDS[member].values()]
        some = outcomes[start : start + 4]
        spreads = [statistics.pstdev(some) + 1e-4, statistics.pstdev(steps) + 1e-4] if scale_by_std else [1.0, 1.0]
        for member in members:
            outcome = (outcomes[member] - statistics.fmean(some)) / spreads[0]
            later = {t: (reward - statistics.fmean(steps)) / spreads[1] for t, reward in LANDS[member].items()}
            expected.append([
                (outcome + sum(value for place, value in later.items() if place >= t)) * (flag == "1")
                for t, flag in enumerate(CHOSEN[member])
            ])  # fmt: skip
    assert_rows(rows(old, old.advantages), expected)


@pytest.mark.parametrize("name", ["rloo", "reinforce"])
def test_whole_responses_count_their_steps(begun, name):
    old = begun(name, *(["algorithm.baseline=none"] if name == "reinforce" else [])).algorithm.collect(0).experience
    totals = [score + sum(lands.values()) for score, lands in zip(SCORES, LANDS, strict=True)]
    worth = [total - BETA * sum(row) for total, row in zip(totals, rows(old, old.kl), strict=True)]
    expected = []
    for place, flags in enumerate(CHOSEN):
        others = [worth[other] for other in range(place - place % 4, place - place % 4 + 4) if other != place]
        advantage = worth[place] - (statistics.fmean(others) if name == "rloo" else 0.0)
        expected.append([advantage * (flag == "1") for flag in flags])
    assert_rows(rows(old, old.advantages), expected)


EVERY = [
    "ppo",
    "reinforce",
    "reinforce_pp",
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "best_of_n",
    "online_dpo",
]


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_comes_from_tokens_that_were_not_chosen(begun, name):
    weights = ["algorithm.importance_cap=2"] if plugins.load("algorithm", name).weighted else []
    started = begun(name, "algorithm.entropy_coef=0.1", *weights)
    algorithm = started.algorithm
    batch = algorithm.collect(0)
    ((part,),) = algorithm.minibatches(batch)
    old = part.experience
    generator = torch.Generator().manual_seed(0)
    leaves = []

    def given(packed, temperature):
        logprobs, entropy = torch.rand(2, len(packed.tokens), generator=generator).unbind()
        leaves[:] = [torch.where(old.mask, -logprobs, 0.0).requires_grad_(), torch.where(old.mask, entropy, 0.0)]
        leaves[1].requires_grad_()
        return leaves

    algorithm.policy.logprobs_and_entropy = given
    loss = algorithm.loss(part)
    loss.value.backward()
    assert torch.isfinite(loss.value)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in loss.metrics.values())
    columns = ("logprobs", "ref_logprobs", "advantages", "returns", "values", "kl")
    for name in (*columns, "importance") if weights else columns:
        column = getattr(old, name)
        assert torch.isfinite(column).all() and not column[~old.mask].any(), name
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all() and not leaf.grad[~old.mask].any() and leaf.grad[old.mask].any()


@pytest.mark.parametrize("name", EVERY)
def test_what_a_tool_said_is_read_and_not_learned(begun, name):
    """The gradient is that of the chosen tokens' log-probs alone, by transformers' own forward."""
    started = begun(name, "algorithm.kl_coef=0.0", *(["algorithm.freeze_critic=true"] if name == "ppo" else []))
    algorithm = started.algorithm
    batch = algorithm.collect(0)
    ((part,),) = algorithm.minibatches(batch)
    leaves = []
    compute = algorithm.policy.logprobs_and_entropy

    def watched(packed, temperature):
        leaves[:] = compute(packed, temperature)
        leaves[0].retain_grad()
        return leaves

    algorithm.policy.logprobs_and_entropy = watched
    started.module.zero_grad()
    algorithm.loss(part).value.backward()
    model = algorithm.policy.model
    found = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    weights, old = leaves[0].grad.double(), part.experience
    assert not weights[~old.mask].any() and weights.any()

    model.zero_grad()
    total = 0.0
    columns = (old.packed.tokens, old.mask, weights)
    for tokens, mask, weight in zip(*map(old.packed.split, columns), strict=True):
        logprobs = model(tokens[None]).logits[0].double().log_softmax(-1)
        for t in mask.nonzero()[:, 0].tolist():
            total = total + weight[t] * logprobs[t - 1, tokens[t]]
    total.backward()
    for key, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found[key], parameter.grad, rtol=0, atol=1e-4 * scale + 1e-8, msg=key)
