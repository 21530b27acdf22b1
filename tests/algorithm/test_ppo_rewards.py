"""CORRECTNESS 3–5: where the score lands, whatever ended the response and whatever tokens the prompt holds."""

import pytest
import torch

from rlhf_core.contracts.rollout import Rollout
from rlhf_core.experience import sample_and_score
from rlhf_core.kernels import shaped_gae

END, PAD = 0, 3
RESPONSES = {
    "normal": ([40, 41, 42, END], "eos"),
    "cut": ([40, 41, 42, 43, 44], "length"),
    "one token": ([END], "eos"),
    "one token, cut": ([40], "length"),
    "pads inside": ([40, PAD, PAD, 41, END], "eos"),
    "pads at the end": ([40, 41, PAD, PAD], "length"),
}
SCORES = [float(number + 1) for number in range(len(RESPONSES))]


class Scripted:
    """A rollout engine whose responses are given; each prompt gains the end token inside and at its end."""

    temperature = top_p = 1.0

    def generate(self, model, prompts, generator):
        prompts = [[END, *prompt, END, END] for prompt in prompts]
        responses = [response for response, _ in RESPONSES.values()]
        logprobs = [torch.full((len(response),), -1.0 - place) for place, response in enumerate(responses)]
        return Rollout(prompts, responses, logprobs, [stop for _, stop in RESPONSES.values()])


class Numbered:
    """A reward that gives 1, 2, 3, …"""

    def setup(self, run):
        pass

    def score(self, samples):
        return torch.tensor(SCORES[: len(samples)])


@pytest.fixture(params=["pad", "pad is the end token"])
def scored(request, start, ppo, checkpoints, tokenizer, tmp_path):
    """A PPO stage with λ = 0 and a scripted rollout: an advantage is then the reward of its own token."""

    def make(*overrides):
        started = start(*ppo("llama", "algorithm.lam=0", "algorithm.batch_size=6", *overrides))
        if request.param != "pad":
            own = started.algorithm.policy.tokenizer
            own.pad_token = own.eos_token
            assert own.pad_token_id == END
        started.run.settings.rollout, started.run.settings.reward = Scripted(), Numbered()
        prompts = started.algorithm.prompts[: len(RESPONSES)]
        return started.algorithm, sample_and_score(started.run, started.algorithm.policy, prompts, None)

    return make


def test_the_score_lands_on_the_last_response_token(scored):
    algorithm, found = scored("algorithm.kl_coef=0")
    experience = algorithm.experience(found)
    rows = zip(experience.packed.split(experience.advantages), RESPONSES.values(), SCORES, strict=True)
    for advantages, (response, _), score in rows:
        expected = [0.0] * (len(advantages) - 1) + [score]
        assert advantages.tolist() == pytest.approx(expected)
        assert len(advantages) > len(response)
    for mask, (response, _) in zip(experience.packed.split(experience.mask), RESPONSES.values(), strict=True):
        assert mask.tolist() == [False] * (len(mask) - len(response)) + [True] * len(response)


def test_every_token_pays_for_its_kl(scored):
    algorithm, found = scored("algorithm.kl_coef=0.3")
    experience = algorithm.experience(found)
    with torch.no_grad():
        reference = algorithm.reference.logprobs(found.packed)
    expected = -0.3 * (found.logprobs - reference) * found.mask
    ends = found.packed.cu_seqlens[1:].long() - 1
    expected[ends] += torch.tensor(SCORES)
    torch.testing.assert_close(experience.advantages, expected, rtol=0, atol=1e-4)
    kl = torch.stack([part.sum() for part in found.packed.split((found.logprobs - reference) * found.mask)])
    assert experience.statistics()["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)


def test_responses_that_were_cut_pay_the_penalty(scored):
    algorithm, found = scored("algorithm.kl_coef=0", "algorithm.missing_eos_penalty=10")
    experience = algorithm.experience(found)
    ends = found.packed.cu_seqlens[1:].long() - 1
    stops = [stop for _, stop in RESPONSES.values()]
    expected = [score - 10 * (stop == "length") for score, stop in zip(SCORES, stops, strict=True)]
    assert experience.advantages[ends].tolist() == pytest.approx(expected)
    assert found.metrics["reward"] == pytest.approx(sum(SCORES) / 6)  # what is logged is the score itself
    assert found.metrics["eos_frac"] == pytest.approx(3 / 6)


def test_responses_that_were_cut_go_on_at_the_critics_value(scored):
    """CORRECTNESS 7: from the stop reason, and only when asked to."""
    algorithm, found = scored("algorithm.kl_coef=0", "algorithm.gamma=0.9", "algorithm.bootstrap=true")
    torch.manual_seed(0)
    algorithm.critic.reset_head(0.5)
    experience = algorithm.experience(found)
    with torch.no_grad():
        read = algorithm.critic(found.packed)
    ends = found.packed.cu_seqlens[1:].long() - 1
    stops = [stop for _, stop in RESPONSES.values()]
    beyond = [0.9 * float(read[end]) * (stop == "length") for end, stop in zip(ends, stops, strict=True)]
    expected = torch.tensor(SCORES) + torch.tensor(beyond) - experience.values[ends]
    torch.testing.assert_close(experience.advantages[ends], expected, rtol=0, atol=1e-5)
    assert sum(value != 0 for value in beyond) == 3
    algorithm.bootstrap = False
    plain = algorithm.experience(found).advantages[ends]
    torch.testing.assert_close(plain, torch.tensor(SCORES) - experience.values[ends], rtol=0, atol=1e-5)


def test_scores_are_clipped(scored):
    algorithm, found = scored("algorithm.kl_coef=0", "algorithm.score_clip=2.5")
    experience = algorithm.experience(found)
    ends = found.packed.cu_seqlens[1:].long() - 1
    assert experience.advantages[ends].tolist() == [1.0, 2.0, 2.5, 2.5, 2.5, 2.5]


def test_gamma_lambda_and_values_reach_the_kernel(scored):
    algorithm, found = scored("algorithm.gamma=0.9", "algorithm.kl_coef=0.2")
    algorithm.lam = 0.8
    torch.manual_seed(0)
    algorithm.critic.reset_head(0.5)
    experience = algorithm.experience(found)
    mean, var = experience.moments
    with torch.no_grad():
        read = algorithm.critic(found.packed)
        reference = algorithm.reference.logprobs(found.packed) * found.mask
    values = torch.cat([read[:1] * 0, read[:-1]]) * found.mask  # of the state before the token was chosen
    torch.testing.assert_close(experience.values, values, rtol=0, atol=1e-5)
    expected = shaped_gae(
        torch.tensor(SCORES), values, found.packed.cu_seqlens, mask=found.mask, logprobs=found.logprobs,
        ref_logprobs=reference, gamma=0.9, lam=0.8, kl_coef=0.2, backend="eager",
    )  # fmt: skip
    torch.testing.assert_close(experience.advantages, expected.advantages, rtol=0, atol=1e-4)
    torch.testing.assert_close(experience.returns, expected.returns, rtol=0, atol=1e-4)
    chosen = experience.advantages[found.mask]
    torch.testing.assert_close(mean, chosen.mean(), rtol=0, atol=1e-5)
    torch.testing.assert_close(var, chosen.var(correction=0), rtol=1e-4, atol=0)
