"""CORRECTNESS 28: Adam's ε is 1e-5 where the papers say so, and stands in the config."""

import pytest

from rlhf_core.hydra_glue import compose_train
from rlhf_core.on_policy import OnPolicy

ON_POLICY = [
    "ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce", "rloo", "reinforce_pp", "online_dpo", "best_of_n",
]  # fmt: skip


@pytest.mark.parametrize("name", ON_POLICY)
def test_policy_gradients_take_the_papers(data, ppo, tmp_path, name):
    composed = compose_train([*data, *ppo("llama"), f"algorithm={name}"], tmp_path)
    algorithm = composed.settings.algorithm
    assert isinstance(algorithm, OnPolicy)
    assert algorithm.optimizer.eps == 1e-5


def test_another_may_be_set(start, ppo):
    started = start(*ppo("llama", "algorithm.optimizer.eps=1e-7"))
    assert {group["eps"] for group in started.algorithm.optimizer.build(started.module).param_groups} == {1e-7}


def test_the_rest_take_adams_own(data, checkpoints, tmp_path):
    for name in ("lm", "sft", "reward_model", "dpo", "ipo", "kto", "orpo", "simpo", "feedme"):
        words = [f"algorithm={name}", "policy=hf", f"policy.path={checkpoints['llama']}"]
        assert compose_train([*data, *words], tmp_path / name).settings.algorithm.optimizer.eps == 1e-8
