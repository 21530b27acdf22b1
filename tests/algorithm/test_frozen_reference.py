"""CORRECTNESS 2, 10, 24: the reference has no dropout, no adapters, and the policy's dtype and temperature."""

from itertools import product

import pytest
import torch

ALGORITHMS = {
    "ppo": ["reward=length"],
    "grpo": ["reward=length", "algorithm.batch_size=8"],
    "dpo": [],
    "feedme": [],
}


@pytest.fixture
def stage(checkpoints):
    def overrides(name, *more):
        return [
            f"algorithm={name}", "policy=hf", f"policy.path={checkpoints['gpt2']}", "algorithm.batch_size=8",
            "algorithm.eval_prompts=4", "rollout.max_new_tokens=8", "seed=3", *ALGORITHMS[name], *more,
        ]  # fmt: skip

    return overrides


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("name", "rank"), list(product(ALGORITHMS, (0, 4))))
def test_before_training_held_out_answers_are_at_no_kl(start, stage, name, rank, temperature):
    """GPT-2 has dropout, and sft-like algorithms train with it: the start's log-probs are those of the samples."""
    words = [f"policy.lora.rank={rank}", f"rollout.temperature={temperature}"]
    assert start(*stage(name, *words)).algorithm.evaluate(0)["kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_policy_and_reference_compute_the_same_numbers(start, stage, precision):
    algorithm = start(*stage("ppo", f"precision={precision}")).algorithm
    packed = algorithm.collect(0).experience.packed
    with torch.no_grad():
        assert torch.equal(algorithm.policy.logprobs(packed, 0.8), algorithm.reference.logprobs(packed, 0.8))
    trained = {id(parameter) for parameter in algorithm.policy.model.parameters()}
    assert not any(parameter.requires_grad for parameter in algorithm.reference.model.parameters())
    assert not trained & {id(parameter) for parameter in algorithm.reference.model.parameters()}
