"""Sampling with a KV cache: recorded log-probs, why responses stop, and that neighbours do not matter."""

import math

import pytest
import torch

from rlhf_core.errors import UserError
from rlhf_core.experience import pack
from rlhf_plugins.policy.hf import HF
from rlhf_plugins.rollout.transformers import Transformers, draw

PROMPTS = [[1, 40, 2], [1, 50, 51, 52, 53, 54, 2], [0], [1, 60, 0, 61, 0, 2], [1, 70, 3, 3, 2]]
"""Of different lengths; some hold the end token (0) or the pad token (3), and one ends with it."""


@pytest.fixture(params=["llama", "gpt2"])
def model(request, checkpoints):
    model = HF(path=str(checkpoints[request.param])).language_model(None)
    head = model.model.get_output_embeddings()
    with torch.no_grad():  # so that the end token comes up about every fourth time
        if model.model.config.model_type == "gpt2":
            head.weight *= 0.5
        bias = torch.zeros(len(head.weight))
        bias[model.end] = 4.5
    head.bias = torch.nn.Parameter(bias)
    return model


def generate(model, prompts, seed=0, **options):
    engine = Transformers(**{"max_new_tokens": 12, **options})
    return engine.generate(model, prompts, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("batch_size", [2, 128])
def test_recorded_logprobs_are_those_of_a_fresh_packed_forward(model, temperature, batch_size):
    rollout = generate(model, PROMPTS * 4, temperature=temperature, batch_size=batch_size)
    packed, mask, recorded = pack(rollout, torch.device("cpu"))
    with model.evaluating():
        fresh = model.logprobs(packed, temperature)
    torch.testing.assert_close(recorded[mask], fresh[mask], rtol=0, atol=1e-5)
    assert rollout.prompts == PROMPTS * 4
    assert all(len(response) == len(row) for response, row in zip(rollout.responses, rollout.logprobs, strict=True))
    assert all(row.dtype == torch.float32 for row in rollout.logprobs)


def test_a_response_ends_with_the_end_token_exactly_where_it_stopped_by_itself(model):
    rollout = generate(model, PROMPTS * 8)
    stops = set(rollout.stops)
    assert stops == {"eos", "length"}
    lengths = {len(response) for response in rollout.responses}
    assert len(lengths) > 4
    for response, stop in zip(rollout.responses, rollout.stops, strict=True):
        assert (response[-1] == model.end) == (stop == "eos")
        assert model.end not in response[:-1]
        assert stop == "eos" or len(response) == 12


def test_a_response_that_ends_with_its_last_allowed_token_did_stop(model):
    rollout = generate(model, PROMPTS * 8, max_new_tokens=1)
    assert {(len(r), r[-1] == model.end, stop) for r, stop in zip(rollout.responses, rollout.stops, strict=True)} == {
        (1, True, "eos"), (1, False, "length"),
    }  # fmt: skip


def test_the_same_generator_state_gives_the_same_responses(model):
    first, again, other = (generate(model, PROMPTS, seed=seed) for seed in (5, 5, 6))
    assert first.responses == again.responses != other.responses
    assert all(torch.equal(one, two) for one, two in zip(first.logprobs, again.logprobs, strict=True))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    generate(model, PROMPTS)
    assert torch.equal(torch.get_rng_state(), state)  # drawn with the given generator alone


def test_one_generator_goes_on_from_batch_to_batch(model):
    rollout = generate(model, [PROMPTS[0]] * 6, batch_size=2)
    assert len(rollout.responses) == 6
    assert len({tuple(response) for response in rollout.responses}) > 2


def test_finished_responses_leave_and_the_others_go_on_as_if_alone(model, monkeypatch):
    """Replays the sampled tokens one response at a time, without a batch, a cache or padding."""
    rows = []
    step = Transformers.generate.__globals__["Batch"].step
    monkeypatch.setattr(
        "rlhf_plugins.rollout.transformers.Batch.step",
        lambda self, *args: (rows.append(len(self.rows)), step(self, *args))[1],
    )
    rollout = generate(model, PROMPTS * 3)
    assert rows[0] == 15 and rows == sorted(rows, reverse=True) and rows[-1] < 15
    for prompt, response, recorded in zip(rollout.prompts, rollout.responses, rollout.logprobs, strict=True):
        with torch.no_grad():
            logits = model.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(recorded, expected, rtol=0, atol=1e-5)


def test_samples_follow_the_distribution(model):
    """First tokens of 4,000 responses against the model's probabilities: a χ² statistic."""
    rollout = generate(model, [PROMPTS[1]] * 4000, max_new_tokens=1, batch_size=4000, temperature=1.5)
    with model.evaluating():
        probabilities = (model.model(torch.tensor([PROMPTS[1]])).logits[0, -1] / 1.5).softmax(-1)
    counts = torch.bincount(torch.tensor([response[0] for response in rollout.responses]), minlength=len(probabilities))
    expected = 4000 * probabilities
    big = expected > 5
    observed = torch.cat([counts[big], counts[~big].sum()[None]]).double()
    wanted = torch.cat([expected[big], expected[~big].sum()[None]]).double().clamp(min=1e-9)
    statistic, freedom = float(((observed - wanted) ** 2 / wanted).sum()), int(big.sum())
    assert freedom > 2
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_the_model_goes_back_to_training(model):
    model.model.train()
    generate(model, PROMPTS)
    assert model.model.training


def test_a_nucleus_holds_the_most_likely_tokens():
    logprobs = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]).log().repeat(500, 1)
    drawn = draw(logprobs, 0.6, torch.Generator().manual_seed(0)).view(500, 2)
    assert set(drawn[:, 0].tolist()) in ({0, 1}, {0, 2})  # 0.5, and what takes it past 0.6
    assert set(drawn[:, 1].tolist()) == {2, 3}
    everything = draw(logprobs, 1.0, torch.Generator().manual_seed(0)).view(500, 2)
    assert set(everything[:, 0].tolist()) == set(everything[:, 1].tolist()) == {0, 1, 2, 3}
    alone = draw(logprobs, 0.01, torch.Generator().manual_seed(0)).view(500, 2)
    assert (set(alone[:, 0].tolist()), set(alone[:, 1].tolist())) == ({0}, {3})


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_is_refused(model, temperature):
    with pytest.raises(UserError, match=rf"^rollout.temperature: got {temperature}, expected more than 0"):
        generate(model, PROMPTS, temperature=temperature)


def test_no_prompts_no_responses(model):
    rollout = generate(model, [])
    assert (rollout.responses, rollout.logprobs, rollout.stops) == ([], [], [])
