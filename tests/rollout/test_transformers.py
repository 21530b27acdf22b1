"""Sampling with a KV cache: recorded log-probs, why responses stop, and that neighbours do not matter."""

import math

import pytest
import torch

from rlhf_core import kernels, precision
from rlhf_core.errors import UserError
from rlhf_core.experience import pack
from rlhf_core.kernels.native.scalars import BUILT
from rlhf_core.kv_cache import KVCache
from rlhf_core.language_model import LanguageModel
from rlhf_plugins.policy.hf import HF
from rlhf_plugins.rollout.transformers import Batch, Transformers, draw

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


def test_samples_do_not_depend_on_what_is_sampled_side_by_side(model):
    prompts = [PROMPTS[0]] * 6 + PROMPTS + [PROMPTS[3]] * 5
    rollout = generate(model, prompts, batch_size=64)
    assert len({tuple(response) for response in rollout.responses[:6]}) > 2
    for batch_size in (1, 2, 7):
        assert generate(model, prompts, batch_size=batch_size).responses == rollout.responses


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_responses_of_a_part_are_those_of_the_whole(model, top_p):
    """One who skips the numbers of the responses before its own samples what one process would have."""
    prompts = [PROMPTS[0]] * 3 + PROMPTS + [PROMPTS[1]] * 2
    engine = Transformers(max_new_tokens=9, top_p=top_p)
    whole = engine.generate(model, prompts, torch.Generator().manual_seed(4))
    for first, last in ((0, 3), (3, 7), (7, 10)):
        generator = torch.Generator().manual_seed(4)
        torch.rand(first * engine.draws_per_response, dtype=torch.float64, generator=generator)
        part = engine.generate(model, prompts[first:last], generator)
        assert part.responses == whole.responses[first:last]
        for one, other in zip(part.logprobs, whole.logprobs[first:last], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


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
    uniform = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(logprobs, 0.6, uniform).view(500, 2)
    assert set(drawn[:, 0].tolist()) in ({0, 1}, {0, 2})  # 0.5, and what takes it past 0.6
    assert set(drawn[:, 1].tolist()) == {2, 3}
    everything = draw(logprobs, 1.0, uniform).view(500, 2)
    assert set(everything[:, 0].tolist()) == set(everything[:, 1].tolist()) == {0, 1, 2, 3}
    alone = draw(logprobs, 0.01, uniform).view(500, 2)
    assert (set(alone[:, 0].tolist()), set(alone[:, 1].tolist())) == ({0}, {3})


def test_tokens_of_a_nucleus_keep_their_shares():
    logprobs = torch.tensor([[0.1, 0.25, 0.5, 0.15]]).log().expand(4, -1)
    shares = torch.tensor([0.0, 0.66, 0.67, 0.999], dtype=torch.float64)  # 0.5 and 0.25 of 0.75
    assert draw(logprobs, 0.7, shares).tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_is_refused(model, temperature):
    with pytest.raises(UserError, match=rf"^rollout.temperature: got {temperature}, expected more than 0"):
        generate(model, PROMPTS, temperature=temperature)


def test_no_prompts_no_responses(model):
    rollout = generate(model, [])
    assert (rollout.responses, rollout.logprobs, rollout.stops) == ([], [], [])


ONE, TWO, THREE = PROMPTS[0], PROMPTS[1], PROMPTS[3]


def assert_recorded_is_fresh(model, rollout, temperature=1.0, atol=1e-5):
    """The recorded log-probs are those of one forward over the packed prompts and responses."""
    packed, mask, recorded = pack(rollout, torch.device("cpu"))
    with model.evaluating():
        fresh = model.logprobs(packed, temperature)
    torch.testing.assert_close(recorded[mask], fresh[mask], rtol=0, atol=atol)


@pytest.fixture
def events(monkeypatch):
    """What each forward of a rollout ran: ("prompts", their lengths, responses under way) or ("step", responses)."""
    seen = []
    forward = Batch.forward

    def recording(self, tokens, positions, cu_seqlens=None):
        if cu_seqlens is None:
            seen.append(("step", len(tokens)))
        else:
            assert len(tokens) == int(cu_seqlens[-1])
            seen.append(("prompts", cu_seqlens.diff().tolist(), len(self.rows)))
        return forward(self, tokens, positions, cu_seqlens)

    monkeypatch.setattr(Batch, "forward", recording)
    return seen


def prefills(events):
    return [event[1:] for event in events if event[0] == "prompts"]


def test_neighbours_with_one_prompt_share_its_prefill(model, events):
    prompts = [ONE] * 3 + [TWO] * 2 + [THREE] + [ONE] * 2
    rollout = generate(model, prompts)
    assert prefills(events) == [([len(ONE), len(TWO), len(THREE), len(ONE)], 0)]
    assert rollout.prompts == prompts
    assert len({tuple(response) for response in rollout.responses[:3]}) > 1
    assert_recorded_is_fresh(model, rollout)


def test_a_response_that_leaves_makes_room(model, events):
    """Three places, groups of 2, 2, 1, 3 and 4: the last does not fit and is two, one of three and one of one."""
    prompts = [ONE] * 2 + [TWO] * 2 + [THREE] + [ONE] * 3 + [TWO] * 4
    rollout = generate(model, prompts, batch_size=3, seed=0)
    lengths = [length for found, _ in prefills(events) for length in found]
    assert lengths == [len(ONE), len(TWO), len(THREE), len(ONE), len(TWO), len(TWO)]
    assert max(event[1] for event in events if event[0] == "step") == 3
    assert any(under_way for _, under_way in prefills(events))  # some began while others went on
    assert all(response and len(response) <= 12 for response in rollout.responses)
    assert_recorded_is_fresh(model, rollout)
    for prompt, response, recorded in zip(prompts, rollout.responses, rollout.logprobs, strict=True):
        with torch.no_grad():
            logits = model.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(recorded, expected, rtol=0, atol=1e-5)


def test_no_place_is_empty_while_a_response_waits(model, events, monkeypatch):
    places = []
    step = Batch.step
    monkeypatch.setattr(
        Batch, "step", lambda self, *args: (places.append((len(self.rows), len(self.waiting))), step(self, *args))
    )
    rollout = generate(model, PROMPTS * 8, batch_size=4)
    assert {rows for rows, waiting in places if waiting} == {4}
    assert [rows for rows, waiting in places if not waiting][-1] < 4
    # The first token of a response comes with its prompt, each other one takes a row of a step, and no row is idle.
    rows = sum(event[1] for event in events if event[0] == "step")
    assert rows == sum(len(response) - 1 for response in rollout.responses)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_groups_larger_than_the_batch(model, batch_size, events):
    rollout = generate(model, [TWO] * 7 + [ONE] * 3, batch_size=batch_size, temperature=1.2)
    lengths = [length for found, _ in prefills(events) for length in found]
    assert lengths == [len(TWO)] * math.ceil(7 / batch_size) + [len(ONE)] * math.ceil(3 / batch_size)
    assert len(rollout.responses) == 10
    assert_recorded_is_fresh(model, rollout, 1.2)


COMPILED = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 32, which the compiled attention takes."""


def with_heads_of_32(kind, new_model, tokenizer, **options):
    sizes = {"n_embd": 64} if kind == "gpt2" else COMPILED
    return LanguageModel(new_model(kind, **sizes, **options), tokenizer)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_the_compiled_kernels_decode(kind, new_model, tokenizer):
    kernels.set_backend()
    model = with_heads_of_32(kind, new_model, tokenizer)
    rollout = generate(model, [ONE] * 4 + [TWO] * 3 + [THREE], batch_size=5)
    assert kernels.used()["decode_attention"]["backend"] == ("cpu" if BUILT else "eager")
    assert_recorded_is_fresh(model, rollout)


@pytest.mark.parametrize("sizes", [COMPILED, {}], ids=["heads of 32", "heads of 8"])
@pytest.mark.parametrize("layers", [["sliding_attention"] * 2, ["sliding_attention", "full_attention"]])
@pytest.mark.parametrize("window", [2, 5, 9])
def test_a_window_that_moves_past_the_first_tokens(new_model, tokenizer, monkeypatch, sizes, layers, window):
    calls = {"_windowed": 0, "attend": 0}
    for name in calls:
        method = getattr(KVCache, name)

        def counted(self, *args, name=name, method=method):
            calls[name] += 1
            return method(self, *args)

        monkeypatch.setattr(KVCache, name, counted)
    options = {"use_sliding_window": True, "sliding_window": window, "layer_types": layers, **sizes}
    model = LanguageModel(new_model("qwen2", **options), tokenizer)
    rollout = generate(model, [ONE] * 3 + [TWO, THREE, ONE], batch_size=4)
    # The longest prompt has 7 tokens: a window of 9 is in nobody's way at first, and the kernel serves.
    some = "full_attention" in layers or window == 9
    assert (0 < calls["_windowed"] < calls["attend"]) if some else (calls["_windowed"] == calls["attend"] > 0)
    assert_recorded_is_fresh(model, rollout)
    unlimited = LanguageModel(new_model("qwen2", **sizes), tokenizer)
    with pytest.raises(AssertionError):
        assert_recorded_is_fresh(unlimited, rollout)


@pytest.fixture
def bfloat16():
    """Models compute in bfloat16, whatever their size."""
    precision.choose("bfloat16")
    yield
    precision.choose("auto")


@pytest.mark.parametrize("choice", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_and_rollouts_take_turns(kind, choice, new_model, tokenizer, bfloat16):
    """Rollouts run in inference mode and on cast weights; neither stays behind."""
    precision.choose(choice)
    model = with_heads_of_32(kind, new_model, tokenizer)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=0.01)
    before = []
    for step in range(3):
        rollout = generate(model, [ONE] * 3 + [TWO], seed=step)
        assert_recorded_is_fresh(model, rollout, atol=1e-5 if choice == "float32" else 0.1)
        tensors = [*model.model.parameters(), *model.model.buffers()]
        assert not any(tensor.is_inference() for tensor in tensors)
        packed, mask, recorded = pack(rollout, torch.device("cpu"))
        assert not recorded.is_inference()
        (model.logprobs(packed) * mask).sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
        with model.evaluating():
            before.append(float((model.logprobs(packed) - recorded)[mask].mean()))
    assert min(before) > 0.5  # each update moved the policy far, and the next rollout was by the new one


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_in_bfloat16_recorded_logprobs_are_fresh_ones_within_rounding(kind, new_model, tokenizer, bfloat16):
    model = with_heads_of_32(kind, new_model, tokenizer)
    rollout = generate(model, ([ONE] * 4 + [TWO] * 4 + [THREE]) * 8, temperature=1.3, batch_size=16)
    packed, mask, recorded = pack(rollout, torch.device("cpu"))
    with model.evaluating():
        fresh = model.logprobs(packed, 1.3)[mask]
        precision.choose("float32")
        exact = model.logprobs(packed, 1.3)[mask]
    difference = (fresh - recorded[mask]).abs()
    assert len(difference) > 400
    assert float(difference.mean()) < 0.01 and float(difference.max()) < 0.1
    assert abs(float((fresh - recorded[mask]).exp().mean()) - 1) < 2e-3
    assert float((exact - recorded[mask]).abs().mean()) > 1e-4  # it was bfloat16 indeed
