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
        other_gradients, other_metrics = cut.gradients(step=1)
        assert gradients.keys() == other_gradients.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(other_gradients[name], gradient, rtol=0, atol=1e-5 * scale + 1e-8, msg=name)
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=2e-5)


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
