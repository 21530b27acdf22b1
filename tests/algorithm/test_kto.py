"""KTO: which responses are wanted, z of the whole minibatch, and the loss against loops."""

import math
from dataclasses import replace
from statistics import median

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_core.errors import UserError
from rlhf_plugins.algorithm.rankings import Ranked


@pytest.fixture
def stage(checkpoints):
    return [
        "algorithm=kto", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.batch_size=6", "seed=3",
        "algorithm.eval_prompts=2", "algorithm.eval_examples=5", "rollout.max_new_tokens=4", "algorithm.beta=0.3",
        "algorithm.desirable_weight=1.3", "algorithm.undesirable_weight=0.8",
    ]  # fmt: skip


def move(model, size=0.02):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def moved(start, stage):
    """A stage whose policy is no longer its reference; z > 0."""

    def started(*overrides):
        found = start(*stage, *overrides)
        move(found.algorithm.policy.model)
        sharpen(found.algorithm)
        return found

    return started


def sharpen(algorithm):
    """Raise the log-probs of what is in the data, so that z is not clamped."""
    optimizer = torch.optim.Adam(algorithm.policy.model.parameters(), lr=3e-3)
    tokens = [ranking.prompt + response for ranking in algorithm.rankings for response in ranking.responses]
    for row in tokens[:30]:
        logprobs = algorithm.policy.model(torch.tensor([row])).logits[0].log_softmax(-1)
        (-logprobs[range(len(row) - 1), row[1:]].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_better_half_and_worse_half_without_what_ties_with_the_middle(start, stage):
    algorithm = start(*stage).algorithm

    def labels(*ranks):
        found = algorithm.compared(Ranked([1], [[place] for place in range(len(ranks))], ranks))
        return {
            response[0]: "wanted" if label == 0 else "not"
            for response, label in zip(found.responses, found.ranks, strict=True)
        }

    assert labels(0.0, 1.0) == {0: "wanted", 1: "not"}
    assert labels(2.0, 0.0, 1.0) == {1: "wanted", 0: "not"}
    assert labels(0.0, 1.0, 1.0, 1.0, 4.0) == {0: "wanted", 4: "not"}
    assert labels(0.0, 0.0, 0.0, 3.0) == {3: "not"}
    assert labels(0.0, 1.0, 2.0, 3.0) == {0: "wanted", 1: "wanted", 2: "not", 3: "not"}
    algorithm.pairs = "best"
    assert labels(2.0, 0.0, 1.0, 0.0, 2.0) == {1: "wanted", 0: "not"}


def test_labels_are_those_of_the_data(start, stage):
    started = start(*stage)
    rows = [row for row in started.run.data.rankings("train") if len(set(row.ranks)) > 1]
    decode = started.algorithm.policy.tokenizer.decode
    for ranking, row in zip(started.algorithm.rankings, rows, strict=True):
        middle = median(row.ranks)
        expected = [(r, float(k > middle)) for r, k in zip(row.responses, row.ranks, strict=True) if k != middle]
        responses = [decode(response[:-1]).strip() for response in ranking.responses]
        assert list(zip(responses, ranking.ranks, strict=True)) == expected


def ratio(policy, reference, prompt, response):
    """log π(y|x)/π_ref(y|x) in float64: stock forwards, one term a token."""
    tokens, total = prompt + response, 0.0
    for model, sign in ((policy, 1), (reference, -1)):
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        total += sign * sum(float(logprobs[t - 1, tokens[t]]) for t in range(len(prompt), len(tokens)))
    return total


def stock(checkpoints, algorithm):
    policy, reference = (AutoModelForCausalLM.from_pretrained(checkpoints["llama"]) for _ in range(2))
    policy.load_state_dict(algorithm.policy.model.state_dict())
    return policy.double(), reference.double()


@pytest.mark.parametrize("pairs", ["all", "best"])
def test_the_loss_is_the_papers(moved, checkpoints, pairs):
    started = moved("trainer.microbatch_tokens=60", f"algorithm.pairs={pairs}")
    algorithm = started.algorithm
    models, batch = stock(checkpoints, algorithm), algorithm.collect(0)
    mismatched = [
        ratio(*models, ranking.prompt, response)
        for place, ranking in enumerate(batch)
        for response in batch[(place + 1) % len(batch)].responses
    ]
    z = sum(mismatched) / len(mismatched)
    assert z > 0.1
    losses, rewards, right = [], {0.0: [], 1.0: []}, 0
    for ranking in batch:
        for response, label in zip(ranking.responses, ranking.ranks, strict=True):
            gain = ratio(*models, ranking.prompt, response)
            rewards[label].append(0.3 * gain)
            weight, side = (1.3, gain - z) if label == 0 else (0.8, z - gain)
            losses.append(weight - weight / (1 + math.exp(-0.3 * side)))
            right += side > 0
    assert all(rewards.values()) and 0 < right < len(losses)
    _, metrics = started.gradients()
    (microbatches,) = algorithm.minibatches(batch)
    assert len(microbatches) > 2
    assert metrics["z"] == pytest.approx(z, rel=1e-4)
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    total = sum(float(algorithm.loss(microbatch).value.detach()) for microbatch in microbatches)
    assert total == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    chosen, rejected = (sum(values) / len(values) for values in rewards.values())
    assert metrics["chosen_reward"] == pytest.approx(chosen, rel=1e-4)
    assert metrics["rejected_reward"] == pytest.approx(rejected, rel=1e-4)
    assert metrics["reward_margin"] == pytest.approx(chosen - rejected, rel=1e-3, abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(right / len(losses))


def test_one_piece_or_many(moved):
    whole = moved("trainer.microbatch_tokens=100000")
    gradients, metrics = whole.gradients(step=1)
    held_out = whole.algorithm.evaluate(0)
    for budget in (1, 130):
        cut = moved(f"trainer.microbatch_tokens={budget}")
        (pieces,) = cut.algorithm.minibatches(cut.algorithm.collect(1))
        assert len(pieces) == 6 if budget == 1 else 2 <= len(pieces) < 6
        other_gradients, other_metrics = cut.gradients(step=1)
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(other_gradients[name], gradient, rtol=0, atol=2e-5 * scale + 1e-8, msg=name)
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=2e-5)
        assert cut.algorithm.evaluate(0) == pytest.approx(held_out, rel=1e-3, abs=1e-4)


def test_z_is_of_the_whole_minibatch_and_has_no_gradient(moved):
    started = moved("trainer.microbatch_tokens=1")
    algorithm = started.algorithm
    batch = algorithm.collect(0)
    (microbatches,) = algorithm.minibatches(batch)
    z = microbatches[0].z
    assert len(microbatches) == 6 and all(torch.equal(part.z, z) for part in microbatches)
    assert not z.requires_grad and float(z) > 0
    assert any(abs(float(algorithm.reference_point(part.rankings) - z)) > 0.1 for part in microbatches)
    losses = [float(algorithm.loss(replace(microbatches[0], z=z + more)).value.detach()) for more in (0, 1)]
    assert losses[0] != losses[1]


def test_z_is_never_negative_and_zero_at_the_start(start, stage):
    algorithm = start(*stage, "algorithm.desirable_weight=1", "algorithm.undesirable_weight=1").algorithm
    batch = algorithm.collect(0)
    assert float(algorithm.reference_point(batch)) == pytest.approx(0, abs=1e-4)
    (microbatches,) = algorithm.minibatches(batch)
    loss = sum(algorithm.loss(part).value for part in microbatches)
    assert float(loss.detach()) == pytest.approx(0.5, abs=1e-4)  # 1 − σ(0)
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in algorithm.policy.model.parameters()) > 1e-4
    head = algorithm.policy.model.get_output_embeddings().weight
    with torch.no_grad():
        head[algorithm.policy.end] -= 1.0  # what the data hold is less likely now
        head *= 3
    assert float(algorithm.reference_point(batch)) == 0.0


def test_mismatched_pairs_stay_within_max_length(start, stage):
    algorithm = start(*stage).algorithm
    longest = max(len(ranking.prompt) for ranking in algorithm.rankings)
    algorithm.max_length = longest + 2
    seen = []
    algorithm.policy.logprobs = lambda packed: seen.append(packed) or torch.zeros(len(packed.tokens))
    algorithm.reference.logprobs = lambda packed: torch.zeros(len(packed.tokens))
    algorithm.reference_point(algorithm.collect(0))
    assert max(int(packed.lengths.max()) for packed in seen) == longest + 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.batch_size=1", "algorithm.batch_size: got 1, expected at least 2"),
        ("algorithm.desirable_weight=-1", "algorithm.desirable_weight: got -1, expected at least 0"),
        ("algorithm.undesirable_weight=-0.5", "algorithm.undesirable_weight: got -0.5, expected at least 0"),
        ("algorithm.beta=-1", "algorithm.beta: got -1, expected more than 0"),
    ],
)
def test_refusals(start, stage, override, message):
    with pytest.raises(UserError) as caught:
        start(*stage, override)
    assert str(caught.value) == message
