"""CORRECTNESS 12 and 23: loss, gradients and metrics of a batch do not depend on how it is cut to fit memory."""

import pytest
import torch


@pytest.fixture
def stages(ppo, grpo, checkpoints):
    model = ["policy=hf", f"policy.path={checkpoints['llama']}"]
    grpo = [*grpo("llama"), "rollout.temperature=1.2"]
    return {
        "lm": ["algorithm=lm", *model, "algorithm.batch_size=6"],
        "sft": ["algorithm=sft", *model, "algorithm.batch_size=6"],
        "reward_model": ["algorithm=reward_model", *model, "algorithm.batch_size=6", "algorithm.center_coef=0.1"],
        "ppo": ppo("llama", "algorithm.entropy_coef=0.01", "rollout.temperature=1.2"),
        "ppo_ptx": ppo("llama", "algorithm.ptx_coef=0.7", "algorithm.ptx_batch=5"),
        "ppo_groups": ppo("llama", "algorithm.responses=3", "algorithm.batch_size=4"),
        "grpo": grpo,
        "grpo_token": [*grpo, "algorithm.aggregate=token"],
    }


@pytest.mark.parametrize("stage", ["lm", "sft", "reward_model", "ppo", "ppo_ptx", "ppo_groups", "grpo", "grpo_token"])
def test_one_piece_or_many(start, stages, stage):
    whole = start(*stages[stage], "trainer.microbatch_tokens=100000")
    pieces = next(iter(whole.algorithm.minibatches(whole.algorithm.collect(1))))
    assert len(pieces) == (2 if stage == "ppo_ptx" else 1)
    gradients, metrics = whole.gradients(step=1)
    for budget in (1, 45):
        cut = start(*stages[stage], f"trainer.microbatch_tokens={budget}")
        pieces = next(iter(cut.algorithm.minibatches(cut.algorithm.collect(1))))
        assert len(pieces) >= (4 if budget == 1 else 2)
        cut.equals(gradients, metrics)


@pytest.mark.parametrize("stage", ["lm", "sft"])
def test_held_out_loss_too(start, stages, stage):
    cut, whole = (start(*stages[stage], f"trainer.microbatch_tokens={budget}") for budget in (1, 100_000))
    assert cut.algorithm.evaluate(0) == pytest.approx(whole.algorithm.evaluate(0), rel=1e-5)


def test_advantages_and_scores_too(start, stages):
    def collected(budget):
        return start(*stages["ppo"], f"trainer.microbatch_tokens={budget}").algorithm.collect(0)

    whole, cut = collected(100_000), collected(1)
    assert torch.equal(whole.experience.packed.tokens, cut.experience.packed.tokens)
    for name in ("logprobs", "values", "scores", "advantages", "returns", "kl"):
        one, other = getattr(whole.experience, name), getattr(cut.experience, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4, msg=name)
    assert whole.metrics == pytest.approx(cut.metrics, abs=1e-3)


POLICY_GRADIENTS = [
    "ppo", "reinforce", "reinforce_pp", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "online_dpo", "best_of_n",
]  # fmt: skip
KL_AND_WEIGHTS = {
    "reward": ["algorithm.kl_in=reward", "algorithm.kl_estimator=k1", "algorithm.kl_coef=0.3"],
    "loss": ["algorithm.kl_in=loss", "algorithm.kl_estimator=k3", "algorithm.kl_coef=0.3"],
    "weights": ["algorithm.kl_coef=0", "algorithm.importance_cap=1.001", "algorithm.entropy_coef=0.02"],
}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in POLICY_GRADIENTS
        for option in KL_AND_WEIGHTS
        if option == "reward" or name not in ("online_dpo", "best_of_n")  # whose KL is there alone; no weights
    ],
)
def test_policy_gradients_in_one_piece_or_many(start, ppo, move, may_end, name, option):
    """Responses of many lengths; a policy that has moved since it sampled, and from its reference."""
    sizes = {"online_dpo": (8, 4), "best_of_n": (8, 4)}.get(name, (4, 4))
    sizes = (8, 1) if name in ("ppo", "reinforce", "reinforce_pp") else sizes
    words = [f"algorithm={name}", f"algorithm.batch_size={sizes[0]}", f"algorithm.responses={sizes[1]}",
             "algorithm.minibatches_a_pass=2", "rollout.temperature=1.2", *KL_AND_WEIGHTS[option]]  # fmt: skip

    def gradients(budget):
        started = start(*ppo("llama"), *words, f"trainer.microbatch_tokens={budget}")
        policy, reference = started.algorithm.policy, started.algorithm.reference
        may_end(started.algorithm)
        move(reference.model, seed=1)
        batch = started.algorithm.collect(1)
        move(policy.model, seed=2)
        started.algorithm.collect = lambda step: batch
        pieces = next(iter(started.algorithm.minibatches(batch)))
        assert len(set(batch.experience.per_sequence(batch.experience.mask.float()).tolist())) > 1
        return len(pieces), *started.gradients()

    count, expected, metrics = gradients(100_000)
    assert count == 1 and any(gradient.any() for gradient in expected.values())
    for budget in (1, 40):
        count, found, others = gradients(budget)
        assert count >= 2 and found.keys() == expected.keys()
        for key, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found[key], gradient, rtol=0, atol=2e-5 * scale + 1e-8, msg=key)
        assert others == pytest.approx(metrics, rel=1e-4, abs=2e-5)
