"""PPO against the one case whose answer is known: responses of one token, p* ∝ p_ref · exp(r/β)."""

from rlhf_core.trainer import Trainer

BETA = 0.7


def test_it_converges_to_the_kl_regularised_optimum(start, small_world):
    started = start(
        "algorithm=ppo", *small_world.overrides, "algorithm.batch_size=256", "algorithm.steps=30",
        "algorithm.minibatches_a_pass=1", "algorithm.epochs=3", f"algorithm.kl_coef={BETA}",
        "algorithm.optimizer.lr=0.01", "algorithm.optimizer.schedule=linear",
    )  # fmt: skip
    started.run.settings.reward = small_world.reward
    trainer = Trainer(started.run, started.algorithm)
    model = started.algorithm.policy.model
    reference = small_world.distribution(small_world.start())
    trainer.fit()
    optimum = (reference.log() + small_world.rewards / BETA).softmax(-1)
    assert float((reference - optimum).abs().sum() / 2) > 0.3  # there was something to learn
    assert float((small_world.distribution(model) - optimum).abs().sum() / 2) < 0.03
