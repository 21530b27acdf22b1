"""1 × 64 = 64 × 1: a minibatch of 64 responses as one microbatch, and as 64 of one response each."""

import pytest
import torch


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_one_of_64_equals_64_of_one(start, ppo, name):
    sizes = {"ppo": (32, 2), "grpo": (8, 8)}[name]
    words = [f"algorithm={name}", f"algorithm.batch_size={sizes[0]}", f"algorithm.responses={sizes[1]}",
             "algorithm.minibatches_a_pass=1", "algorithm.entropy_coef=0.01"]  # fmt: skip
    found = {}
    for budget, pieces in ((100_000, 1), (1, 64)):
        started = start(*ppo("llama"), *words, f"trainer.microbatch_tokens={budget}")
        algorithm = started.algorithm
        with torch.no_grad():  # away from where it sampled, so that some ratios are clipped
            batch = algorithm.collect(0)
            generator = torch.Generator().manual_seed(0)
            for parameter in algorithm.policy.model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        parts = next(iter(algorithm.minibatches(batch)))
        assert len(parts) == pieces
        losses = [algorithm.loss(part) for part in parts]
        total = sum(loss.value for loss in losses)
        total.backward()
        gradient = torch.cat([p.grad.flatten() for p in started.module.parameters() if p.grad is not None])
        clipped = sum(float(loss.metrics["clip_frac"]) * loss.weight for loss in losses)
        found[pieces] = float(total.detach()), gradient, clipped
    (whole, gradient, clipped), (cut, other, also_clipped) = found[1], found[64]
    assert cut == pytest.approx(whole, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(other, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
    assert also_clipped == pytest.approx(clipped) and clipped > 3
