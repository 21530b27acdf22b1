"""CORRECTNESS 11: samples of a nucleus have log-probs of the full distribution, and are not trained on."""

import pytest
import torch

from rlhf_core.errors import UserError
from rlhf_core.experience import pack
from rlhf_plugins.policy.hf import HF
from rlhf_plugins.rollout.transformers import Transformers

PROMPTS = [[1, 40, 2], [1, 50, 51, 52, 2], [0]] * 4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logprobs_are_of_the_full_distribution(checkpoints, temperature):
    model = HF(path=str(checkpoints["llama"])).language_model(None)
    engine = Transformers(max_new_tokens=8, top_p=0.5, temperature=temperature)
    rollout = engine.generate(model, PROMPTS, torch.Generator().manual_seed(0))
    packed, mask, recorded = pack(rollout, torch.device("cpu"))
    with model.evaluating():
        full = model.logprobs(packed, temperature)
    torch.testing.assert_close(recorded[mask], full[mask], rtol=0, atol=1e-5)
    everything = []
    with torch.no_grad():
        for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
            logits = model.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            probabilities = (logits / temperature).softmax(-1)
            chosen = probabilities.gather(1, torch.tensor(response)[:, None])
            everything += (probabilities * (probabilities > chosen)).sum(-1).tolist()
    assert max(everything) < 0.5 + 1e-5  # what is likelier than the token has less than top_p: it was in the nucleus


@pytest.mark.parametrize(
    "name",
    ["ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce", "rloo", "reinforce_pp", "online_dpo", "best_of_n"],
)
def test_every_algorithm_that_learns_from_its_samples_refuses_it(start, ppo, name):
    with pytest.raises(UserError, match=r"^rollout.top_p: got 0.9, but training needs 1.0 \(a nucleus changes the"):
        start(*ppo("llama"), f"algorithm={name}", "rollout.top_p=0.9")
