"""CORRECTNESS 5, 7, 12, 22: a response without tokens takes part in nothing, and takes nothing from the others."""

import math

import pytest
import torch

from rlhf_core.contracts.rollout import Rollout

END = 0
RESPONSES = [[40, 41, END], [], [42], [43, 44, 45, 46], [END], [], [47, END], [48, 49]]
ANSWERED = [place for place, response in enumerate(RESPONSES) if response]
SCORES = [float(number * number) for number in range(len(RESPONSES))]


class Scripted:
    """A rollout engine whose responses are given."""

    temperature = top_p = 1.0
    max_new_tokens = 4

    def __init__(self, model, responses):
        self.model, self.responses = model, responses

    def generate(self, model, prompts, generator):
        """The first responses, with the log-probs that they have."""
        responses = self.responses[: len(prompts)]
        stops = ["eos" if response[-1:] == [END] else "length" for response in responses]
        logprobs = []
        for prompt, response in zip(prompts, responses, strict=True):
            tokens = [*prompt, *response]
            with torch.no_grad():
                full = model.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            places = range(len(prompt), len(tokens))
            logprobs.append(torch.tensor([float(full[t - 1, tokens[t]]) for t in places]))
        return Rollout(prompts, responses, logprobs, stops)


class Numbered:
    """A reward that gives 0, 1, 4, 9, …"""

    def setup(self, run):
        """Nothing."""

    def score(self, samples):
        """The square of a response's place."""
        return torch.tensor(SCORES[: len(samples)])


@pytest.fixture
def scripted(start, ppo):
    def make(name, *overrides, responses=RESPONSES):
        sizes = ["algorithm.batch_size=8", "algorithm.minibatches_a_pass=1"]
        if name not in ("ppo", "reinforce", "reinforce_pp"):
            sizes = ["algorithm.batch_size=4", "algorithm.responses=2"]
        started = start(*ppo("llama"), f"algorithm={name}", *sizes, *overrides)
        started.run.settings.rollout = Scripted(started.algorithm.policy, responses)
        started.run.settings.reward = Numbered()
        return started

    return make


def responses_of(experience, values):
    split = zip(experience.packed.split(values), experience.packed.split(experience.mask), strict=True)
    return [row[mask].tolist() for row, mask in split]


def test_its_score_lands_nowhere_and_those_of_the_others_on_their_last_tokens(scripted):
    experience = scripted("ppo", "algorithm.lam=0", "algorithm.kl_coef=0").algorithm.collect(0).experience
    expected = [[0.0] * (len(r) - 1) + [s] if r else [] for r, s in zip(RESPONSES, SCORES, strict=True)]
    assert responses_of(experience, experience.advantages) == expected
    assert not experience.advantages[~experience.mask].any() and not experience.returns[~experience.mask].any()


def test_what_whitens_is_of_tokens_that_there_are(scripted):
    experience = scripted("ppo").algorithm.collect(0).experience
    chosen = experience.advantages[experience.mask].double()
    assert len(chosen) == sum(map(len, RESPONSES))
    mean, var = experience.moments
    assert float(mean) == pytest.approx(float(chosen.mean()), rel=1e-5)
    assert float(var) == pytest.approx(float(chosen.var(correction=0)), rel=1e-5)


@pytest.mark.parametrize("name", ["grpo", "gspo", "rloo", "reinforce"])
def test_a_mean_over_responses_is_over_those_that_have_tokens(scripted, name):
    """With a ratio of 1: −1/S · Σ_b mean over b's tokens of A_b (grpo, gspo), or −1/S · Σ_b Σ_t A_b."""
    for budget in (1, 100_000):
        started = scripted(name, f"trainer.microbatch_tokens={budget}", "algorithm.kl_coef=0.0")
        batch = started.algorithm.collect(0)
        rows = responses_of(batch.experience, batch.experience.advantages.double())
        terms = [sum(row) / (len(row) if name in ("grpo", "gspo") else 1) for row in rows if row]
        parts = next(iter(started.algorithm.minibatches(batch)))
        assert {part.sequences for part in parts} == {len(ANSWERED)}
        assert len(parts) == (8 if budget == 1 else 1)
        losses = [started.algorithm.loss(part) for part in parts]
        total = sum(float(loss.value.detach()) for loss in losses)
        assert abs(sum(terms)) > 1
        assert total == pytest.approx(-sum(terms) / len(ANSWERED), rel=1e-4)
        assert all(torch.isfinite(torch.as_tensor(v)).all() for loss in losses for v in loss.metrics.values())


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "dr_grpo", "cispo", "rloo", "reinforce", "reinforce_pp"])
def test_a_rollout_of_nothing_else_teaches_nothing(scripted, name):
    started = scripted(name, responses=[[]] * 8)
    gradients, metrics = started.gradients()
    assert not any(gradient.any() for gradient in gradients.values())
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


def test_a_pair_with_one_is_a_pair(scripted):
    """Online DPO is a mean over pairs: log 2 each, at the start, however many tokens they have."""
    started = scripted("online_dpo")
    (parts,) = started.algorithm.minibatches(started.algorithm.collect(0))
    total = sum(float(started.algorithm.loss(part).value.detach()) for part in parts)
    assert total == pytest.approx(math.log(2), rel=1e-4)
