"""GRPO: advantages by groups, a ratio of one, the loss as the paper has it, and what is refused."""

import math

import pytest
import torch

from rlhf_core.advantages import group_advantages
from rlhf_core.errors import UserError

LLAMA, GPT2 = "llama", "gpt2"


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_advantages_are_compared_within_groups(scale_by_std):
    scores = torch.tensor([1.0, 2.0, 6.0, -1.0, -1.0, -4.0, 0.5, 0.5, 0.5, 100.0, 101.0, 99.0])
    expected = []
    for start in range(0, 12, 3):
        group = scores[start : start + 3].tolist()
        mean = sum(group) / 3
        std = math.sqrt(sum((score - mean) ** 2 for score in group) / 3)
        expected += [(score - mean) / (std + 1e-4 if scale_by_std else 1.0) for score in group]
    found = group_advantages(scores, 3, scale_by_std=scale_by_std)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert not found[6:9].any()  # zero variance: nothing to learn, and no division by zero


def test_advantages_do_not_depend_on_the_scores_offset_nor_much_on_their_scale():
    scores = torch.tensor([0.0, 1.0, 3.0, 2.0])
    plain = group_advantages(scores, 4)
    torch.testing.assert_close(group_advantages(scores + 7, 4), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(group_advantages(scores * 50, 4), plain, rtol=1e-3, atol=0)
    assert float(plain.var(correction=0)) == pytest.approx(1, abs=1e-3)


def test_a_group_of_one_has_nothing_to_be_compared_with():
    """So held-out answers, one a prompt, have advantages of 0."""
    assert not group_advantages(torch.tensor([3.0, -2.0]), 1).any()


def test_every_token_of_a_response_has_its_advantage_and_prompts_have_none(start, grpo):
    started = start(*grpo(LLAMA))
    batch = started.algorithm.collect(0)
    experience = batch.experience
    assert len(experience.scores) == 16
    expected = group_advantages(experience.scores, 4)
    assert bool(expected.any())
    split = experience.packed.split
    rows = zip(split(experience.advantages), split(experience.mask), expected, strict=True)
    for advantages, mask, value in rows:
        assert torch.equal(advantages, torch.where(mask, value, 0.0))
    numbers = [number for number, _ in experience.packed.prompts]
    assert numbers == sorted(numbers) and len(set(numbers)) == 4 and numbers.count(numbers[0]) == 4
    assert batch.metrics["flat_groups"] == 0.0


def test_flat_groups_are_counted(start, grpo):
    started = start(*grpo(LLAMA))
    scores = torch.cat([torch.ones(4), torch.arange(4.0), torch.zeros(4), torch.arange(4.0)])
    started.run.reward.score = lambda samples: scores[: len(samples.responses)]
    batch = started.algorithm.collect(0)
    assert batch.metrics["flat_groups"] == 0.5
    flat = batch.experience.packed.split(batch.experience.advantages)
    assert [bool(row.any()) for row in flat[::4]] == [False, True, False, True]


def first_minibatch(started):
    batch = started.algorithm.collect(0)
    return batch, [started.algorithm.loss(part) for part in next(iter(started.algorithm.minibatches(batch)))]


@pytest.mark.parametrize("kind", [LLAMA, GPT2])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_ratio_is_one(start, grpo, kind, temperature, budget):
    words = grpo(kind, f"rollout.temperature={temperature}", f"trainer.microbatch_tokens={budget}")
    batch, losses = first_minibatch(start(*words, "rollout.batch_size=6"))
    assert len(losses) == {1: 16, 100_000: 1}.get(budget, len(losses))
    for loss in losses:
        for name, expected in (("ratio_max", 1), ("ratio_mean", 1), ("approx_kl", 0), ("clip_frac", 0), ("kl_loss", 0)):
            assert float(loss.metrics[name]) == pytest.approx(expected, abs=2e-5), name
        assert loss.metrics["first_ratio_max"] == loss.metrics["ratio_max"]
    assert batch.metrics["kl"] == pytest.approx(0, abs=1e-4)  # the reference is the policy as it started


def test_ratio_is_one_with_adapters_and_the_reference_has_them_off(start, grpo):
    started = start(*grpo(LLAMA, "policy.lora.rank=4", "rollout.temperature=1.3"))
    with torch.no_grad():  # at the start they do nothing
        for name, parameter in started.algorithm.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    batch, (loss,) = first_minibatch(started)
    assert float(loss.metrics["ratio_max"]) == pytest.approx(1, abs=2e-5)
    assert abs(batch.metrics["kl"]) > 0.1 and float(loss.metrics["kl_loss"]) > 1e-3


def test_the_ratio_check_can_fail(start, grpo):
    started = start(*grpo(LLAMA))
    batch = started.algorithm.collect(0)
    started.run.rollout.temperature = 1.05
    (microbatch,) = next(iter(started.algorithm.minibatches(batch)))
    assert float(started.algorithm.loss(microbatch).metrics["ratio_max"]) > 1 + 1e-3


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_the_loss_is_the_papers(start, grpo, aggregate, kl_coef):
    """A policy that has moved, against loops over responses and their tokens."""
    words = grpo(LLAMA, f"algorithm.aggregate={aggregate}", f"algorithm.kl_coef={kl_coef}")
    started = start(*words, "trainer.microbatch_tokens=100000")
    algorithm = started.algorithm
    batch = algorithm.collect(0)
    with torch.no_grad():
        for parameter in algorithm.policy.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    (microbatch,) = next(iter(algorithm.minibatches(batch)))
    loss = algorithm.loss(microbatch)
    old = microbatch.experience
    with torch.no_grad():
        new = algorithm.policy.logprobs(old.packed).double()
        reference = algorithm.reference.logprobs(old.packed).double() if kl_coef else new
    split = old.packed.split
    terms, clipped = [], 0
    parts = (new, old.logprobs.double(), reference, old.advantages.double(), old.mask)
    for now, before, given, advantages, mask in zip(*map(split, parts), strict=True):
        response = []
        for t in mask.nonzero()[:, 0].tolist():
            ratio = math.exp(now[t] - before[t])
            bounded = min(max(ratio, 0.8), 1.2)
            clipped += bounded != ratio
            gap = float(given[t] - now[t])
            kl = math.exp(gap) - gap - 1
            response.append(min(ratio * float(advantages[t]), bounded * float(advantages[t])) - kl_coef * kl)
        terms.append(response)
    assert clipped > 3
    flat = [term for response in terms for term in response]
    means = [sum(response) / len(response) for response in terms]
    expected = -sum(flat) / len(flat) if aggregate == "token" else -sum(means) / len(means)
    assert float(loss.value.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
def test_metrics_of_unequal_responses_do_not_depend_on_the_cut(start, grpo, aggregate):
    """CORRECTNESS 23: responses of 1 to 8 tokens, a policy that has moved from its reference."""

    def metrics(budget):
        started = start(*grpo(LLAMA, f"algorithm.aggregate={aggregate}", f"trainer.microbatch_tokens={budget}"))
        head = started.algorithm.policy.model.get_output_embeddings()
        bias = torch.zeros(len(head.weight))
        bias[started.algorithm.policy.end] = 4.5  # so that the end token comes up about every fourth time
        head.bias = torch.nn.Parameter(bias)
        lengths = started.algorithm.collect(0).experience.packed.predicted.sum()
        assert 16 < int(lengths) < 120
        return started.gradients()

    (whole, expected), (cut, found) = metrics(100_000), metrics(1)
    for name, gradient in whole.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(cut[name], gradient, rtol=0, atol=1e-5 * scale + 1e-8)
    assert expected["kl_loss"] > 0.05
    assert found == pytest.approx(expected, rel=1e-4, abs=2e-5)


def test_without_division_by_the_std(start, grpo):
    experience = start(*grpo(LLAMA, "algorithm.scale_by_std=false")).algorithm.collect(0).experience
    groups = experience.scores.view(4, 4)
    expected = (groups - groups.mean(1, keepdim=True)).flatten()
    first = [row[mask][0] for row, mask in zip(experience.packed.split(experience.advantages),
                                               experience.packed.split(experience.mask), strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.stack(first), expected)


def test_the_plan_of_a_batch(start, grpo):
    started = start(*grpo(LLAMA, "algorithm.epochs=2", "algorithm.minibatches_a_pass=2"))
    batch = started.algorithm.collect(0)
    plan = list(started.algorithm.minibatches(batch))
    assert len(plan) == 4
    assert [[part.first for part in parts] for parts in plan] == [[True], [False], [False], [False]]
    assert [parts[0].sequences for parts in plan] == [8] * 4  # responses
    for place in (0, 2):
        scores = torch.cat([part.experience.scores for parts in plan[place : place + 2] for part in parts])
        assert sorted(scores.tolist()) == sorted(batch.experience.scores.tolist())
    text = started.algorithm.arithmetic()
    assert "4 prompts × 4 responses = 16 responses, in 2 epochs × 2 minibatches of 8" in text


def test_the_reference_stays_and_the_policy_moves(start, grpo):
    started = start(*grpo(LLAMA, "algorithm.optimizer.lr=0.01"))
    algorithm = started.algorithm
    optimizer = algorithm.optimizer.build(started.module)
    packed = algorithm.collect(0).experience.packed
    with torch.no_grad():
        before = algorithm.reference.logprobs(packed)
    started.gradients()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(algorithm.reference.logprobs(packed), before)
        assert not torch.allclose(algorithm.policy.logprobs(packed), before, atol=1e-2)
    assert abs(algorithm.collect(0).metrics["kl"]) > 1e-3
    assert {id(p) for p in started.module.parameters()} == {id(p) for p in algorithm.policy.model.parameters()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.responses=1", "algorithm.responses: got 1, but a group needs at least 2"),
        ("algorithm.responses=0", "algorithm.responses: got 0, expected"),
        ("algorithm.aggregate=foo", "algorithm.aggregate: got 'foo', expected sequence or token or constant"),
        ("rollout.top_p=0.9", "rollout.top_p: got 0.9, but training needs 1.0"),
        ("algorithm.minibatches_a_pass=3", "algorithm.minibatches_a_pass: 4 prompts × 4 responses do not"),
        ("algorithm.batch_size=500", "algorithm.batch_size: got 500, but the data have only"),
    ],
)
def test_refusals(start, grpo, override, message):
    with pytest.raises(UserError) as caught:
        start(*grpo(LLAMA, override))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
