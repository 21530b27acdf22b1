"""CORRECTNESS 16, 17, 21: K-wise loss against a loop over pairs, its head, and the bias."""

import math
from itertools import product

import pytest
import torch

from rlhf_core.contracts.reward import Samples
from rlhf_core.scalar_model import ScalarModel
from rlhf_plugins.reward.learned import Learned


@pytest.fixture
def stage(checkpoints):
    return ["algorithm=reward_model", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.batch_size=6"]


def by_hand(model, rankings, center):
    """Loss and accuracy of rankings, one stock forward a response, one term a pair."""
    losses, accuracies = [], []
    for ranking in rankings:
        scores = []
        for response in ranking.responses:
            hidden = model.model.base_model(torch.tensor([ranking.prompt + response])).last_hidden_state[0, -1]
            scores.append(float(hidden @ model.head.weight[0]))
        pairs = [(b, w) for b, w in product(range(len(scores)), repeat=2) if ranking.ranks[b] < ranking.ranks[w]]
        if pairs:
            terms = [
                math.log1p(math.exp(scores[w] - scores[b])) + center * (scores[b] + scores[w]) ** 2 for b, w in pairs
            ]
            losses.append(sum(terms) / len(terms))
            accuracies.append(sum(scores[b] > scores[w] for b, w in pairs) / len(pairs))
    return sum(losses) / len(losses), sum(accuracies) / len(accuracies)


@pytest.mark.parametrize("center", [0.0, 0.2])
@pytest.mark.parametrize("budget", [1, 100_000])
def test_the_loss_is_the_mean_over_prompts_of_the_mean_over_untied_pairs(start, stage, center, budget):
    started = start(*stage, f"algorithm.center_coef={center}", f"trainer.microbatch_tokens={budget}")
    batch = started.algorithm.collect(0)
    assert {len(ranking.responses) for ranking in batch} >= {2, 3}
    assert any(len(set(ranking.ranks)) < len(ranking.ranks) for ranking in batch)
    with torch.no_grad():
        expected, accuracy = by_hand(started.algorithm.model, batch, center)
    _, metrics = started.gradients()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(accuracy)
    (microbatches,) = started.algorithm.minibatches(batch)
    total = sum(float(started.algorithm.loss(microbatch).value.detach()) for microbatch in microbatches)
    assert total == pytest.approx(expected, rel=1e-4)


def test_a_batch_of_ties_gives_no_gradient(start, stage):
    started = start(*stage)
    tied = [ranking for ranking in started.algorithm.rankings if not ranking.informative]
    assert tied and all(len(set(ranking.ranks)) == 1 for ranking in tied)
    (microbatches,) = started.algorithm.minibatches(tied)
    loss = started.algorithm.loss(microbatches[0])
    loss.value.backward()
    assert float(loss.value.detach()) == 0
    assert not any(p.grad.any() for p in started.module.parameters() if p.grad is not None)


def test_a_ranking_stays_whole_and_ends_with_the_end_token(start, stage):
    started = start(*stage, "trainer.microbatch_tokens=1")
    batch = started.algorithm.collect(0)
    (microbatches,) = started.algorithm.minibatches(batch)
    assert [ranking for microbatch in microbatches for ranking in microbatch.rankings] == batch
    end = started.algorithm.model.tokenizer.eos_token_id
    assert all(response[-1] == end for ranking in batch for response in ranking.responses)


def test_the_head_starts_at_one_over_the_root_of_width_plus_one(start, stage, monkeypatch):
    seen = []
    monkeypatch.setattr(ScalarModel, "reset_head", lambda self, std: seen.append((self.head.in_features, std)))
    start(*stage)
    assert seen == [(32, pytest.approx(33**-0.5))]


@pytest.mark.parametrize("lora", [0, 4])
def test_demonstrations_score_zero_on_average_and_a_checkpoint_knows_it(start, stage, tmp_path, lora):
    started = start(*stage, "evaluator=[ranking_accuracy]", "trainer.microbatch_tokens=40", f"policy.lora.rank={lora}")
    rows = started.run.data.demonstrations("train")
    before = started.algorithm.scores(rows)
    assert abs(float(before.mean())) > 0.01
    started.algorithm.save(tmp_path / "result")
    reward = Learned(path=str(tmp_path / "result"), scale=2.0)
    reward.setup(started.run)
    after = reward.score(Samples([row.prompt for row in rows], [row.response for row in rows]))
    assert float(after.mean()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(after, 2 * (before - before.mean()), rtol=0, atol=1e-4)
    assert not reward.scorer.model.training and not any(p.requires_grad for p in reward.scorer.model.parameters())


def test_a_learned_reward_reads_sampled_tokens_as_they_are(start, stage, reward_checkpoint, tokenizer):
    """What was sampled need not be what its text would be encoded as; the end token is added where it was cut."""
    started = start(*stage)
    reward = Learned(path=str(reward_checkpoint))
    reward.setup(started.run)
    prompt, end = [5, 6, 0, 7], tokenizer.eos_token_id
    responses, read = [[40, 41, end], [40, 41], [end]], [[40, 41, end], [40, 41, end], [end]]
    samples = Samples(["?"] * 3, ["?"] * 3, [prompt] * 3, responses, ["eos", "length", "eos"], tokenizer)
    model = reward.scorer.model
    with torch.no_grad():
        hidden = [model.model.base_model(torch.tensor([prompt + one])).last_hidden_state[0, -1] for one in read]
    expected = [float(one @ model.head.weight[0]) - 0.25 for one in hidden]
    assert reward.score(samples).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_order_of_a_batch_does_not_matter(start, stage, reward_checkpoint):
    started = start(*stage, "trainer.microbatch_tokens=30")
    reward = Learned(path=str(reward_checkpoint))
    reward.setup(started.run)
    rows = started.run.data.demonstrations("train")
    forward = reward.score(Samples([r.prompt for r in rows], [r.response for r in rows]))
    backward = reward.score(Samples([r.prompt for r in rows[::-1]], [r.response for r in rows[::-1]]))
    torch.testing.assert_close(forward, backward.flip(0), rtol=0, atol=1e-5)
    assert len(reward.score(Samples([], []))) == 0
