"""Text that a tool puts into responses: what it says, that the policy reads it and is not trained on it."""

import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from rlhf_core.experience import pack
from rlhf_core.kernels import whitened
from rlhf_core.language_model import LanguageModel
from rlhf_core.text import decode
from rlhf_plugins.rollout.calculator import Calculator, answer
from rlhf_plugins.rollout.transformers import Transformers

CPU = torch.device("cpu")
GSM8K = os.environ.get("RLHF_GSM8K")
PROMPTS = [[1, 40, 2], [1, 50, 51, 52, 53, 54, 2], [1, 60, 61, 2]]


class Parrot(Transformers):
    """After every fourth token of the vocabulary it says these three."""

    says = (70, 71, 72)

    def insert(self, model, response):
        return list(self.says) if response[-1] % 4 == 0 else []


class Silent(Transformers):
    """Asked, and never says anything."""

    def insert(self, model, response):
        return []


class Ending(Parrot):
    """Says two tokens and ends the response; what it meant to say after that is lost."""

    says = (70, 71, 0, 72)


@pytest.fixture(params=["llama", "gpt2", "qwen2 with a window"])
def model(request, new_model, tokenizer):
    kind, *window = request.param.split(" ", 1)
    options = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention"] * 2}
    return LanguageModel(new_model(kind, **(options if window else {})), tokenizer)


def generate(model, engine, prompts=PROMPTS, seed=0):
    return engine.generate(model, prompts, torch.Generator().manual_seed(seed))


def assert_recorded_is_fresh(model, rollout):
    """The log-probs of chosen tokens are those of one forward over everything, what was inserted too."""
    packed, mask, recorded = pack(rollout, CPU)
    with model.evaluating():
        fresh = model.logprobs(packed)
    torch.testing.assert_close(recorded, fresh * mask, rtol=0, atol=2e-5)
    for prompt, response, row, chosen in zip(*rows_of(rollout), strict=True):
        with torch.no_grad():
            row_of_one = torch.tensor([[*prompt, *response]])
            logits = model.model(row_of_one, attention_mask=torch.ones_like(row_of_one)).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(row, alone * torch.tensor(chosen), rtol=0, atol=2e-5)


def rows_of(rollout):
    return rollout.prompts, rollout.responses, rollout.logprobs, rollout.chosen


def retold(response, says):
    """Which tokens of a response the policy chose, read off the response alone."""
    chosen, pending = [], []
    for token in response:
        chosen.append(not pending)
        assert not pending or token == pending[0]
        pending = pending[1:] if pending else list(says) if token % 4 == 0 else []
    return chosen


@pytest.mark.parametrize("batch_size", [2, 64])
def test_inserted_tokens_are_read_and_marked(model, batch_size):
    engine = Parrot(max_new_tokens=14, batch_size=batch_size)
    rollout = generate(model, engine, [PROMPTS[0]] * 4 + PROMPTS * 3)
    assert_recorded_is_fresh(model, rollout)
    for response, row, chosen, stop in zip(
        rollout.responses, rollout.logprobs, rollout.chosen, rollout.stops, strict=True
    ):
        assert chosen == retold(response, Parrot.says)
        assert all(value == 0 for value, own in zip(row.tolist(), chosen, strict=True) if not own)
        assert len(response) == len(row) == len(chosen) <= 14
        assert stop == ("eos" if response[-1] == model.end else "length")
        assert stop == "eos" or len(response) == 14  # what was inserted counts
    flat = [own for chosen in rollout.chosen for own in chosen]
    assert 10 < flat.count(False) < len(flat) - 10
    assert any(not chosen[-1] for chosen in rollout.chosen)  # the limit cut some short in what was inserted


def test_samples_with_insertions_do_not_depend_on_the_batch(model):
    prompts = [PROMPTS[0]] * 4 + PROMPTS * 3
    whole = generate(model, Parrot(max_new_tokens=14, batch_size=64), prompts)
    for batch_size in (1, 3):
        other = generate(model, Parrot(max_new_tokens=14, batch_size=batch_size), prompts)
        assert (other.responses, other.chosen) == (whole.responses, whole.chosen)


def test_an_inserted_end_token_ends_the_response(model):
    rollout = generate(model, Ending(max_new_tokens=14), PROMPTS * 8)
    ended = [
        (response, chosen)
        for response, chosen, stop in zip(rollout.responses, rollout.chosen, rollout.stops, strict=True)
        if stop == "eos"
    ]
    assert any(not chosen[-1] for _, chosen in ended)
    for response, chosen in ended:
        assert response[-1] == model.end and model.end not in response[:-1]
        assert chosen[-1] or response[-3:] == [70, 71, 0]
    assert_recorded_is_fresh(model, rollout)


def test_an_engine_that_says_nothing_samples_as_one_without_the_hook(model):
    plain, silent = (generate(model, kind(max_new_tokens=9), PROMPTS * 2) for kind in (Transformers, Silent))
    assert plain.responses == silent.responses
    assert plain.chosen == ()
    assert silent.chosen == [[True] * len(response) for response in silent.responses]


@pytest.fixture
def counting(new_model, tokenizer):
    """A model that mostly writes ``<``, digits, operators and ``=``."""
    model = LanguageModel(new_model("llama"), tokenizer)
    head = model.model.get_output_embeddings()
    bias = torch.zeros(len(head.weight))
    for text, weight in {"<": 9.0, "=": 7.5, "+": 6.5, "*": 6.5, "/": 6.5, "2": 7.5, "7": 7.5, ".": 5.0}.items():
        bias[tokenizer.convert_tokens_to_ids(text)] = weight
    head.bias = torch.nn.Parameter(bias)
    return model


@pytest.mark.parametrize("batch_size", [40, 400])
def test_the_value_follows_where_an_expression_is_asked(counting, batch_size):
    engine = Calculator(max_new_tokens=24, batch_size=batch_size, temperature=1.0)
    rollout = generate(counting, engine, PROMPTS * 130)
    text = counting.tokenizer.decode
    answered = 0
    for response, chosen in zip(rollout.responses, rollout.chosen, strict=True):
        assert retold_by_text(text, response, 24) == chosen
        answered += not all(chosen)
    assert answered > 20
    assert_recorded_is_fresh(counting, rollout)
    whole = [text(response) for response in rollout.responses]
    found = [match for line in whole for match in re.findall(r"<<([-+*/.0-9]+)=(-?[0-9.]+)>>", line)]
    right = [value == answer(expression) for expression, value in found]
    assert len(right) > 10 and all(right)


def retold_by_text(text, response, length):
    """The same as ``chosen``, by decoding everything from the start at each token."""
    chosen, pending = [], 0
    for place in range(len(response)):
        chosen.append(pending == 0)
        pending = max(0, pending - 1)
        asked = re.search(r"<<([-+*/().0-9]{1,64})=$", text(response[: place + 1])) if chosen[-1] else None
        value = asked and answer(asked[1])
        if value and place + 1 < length:
            pending = len(value) + 2  # these tokens are a character each
    return chosen


def test_expressions_cut_in_any_way_into_tokens_are_found(counting):
    """A token that ends the text before ``<<``, one that is part of a character, and the longest expression."""
    encode = counting.tokenizer.encode
    engine = Calculator()

    def said(text):
        return counting.tokenizer.decode(engine.insert(counting, encode(text, add_special_tokens=False)))

    assert said("it takes 48/2 = <<48/2=") == "24>>"
    assert said("the film was good €<<1+1=") == "2>>"
    assert said("«<<(1.5+2)*4=") == "14>>"
    assert said("<<" + "1+" * 31 + "10=") == "41>>"
    for text in ("<<48/2", "48/2=", "<48/2=", "<<48/2= ", "<<a=", "<<=", "<<1+=", "<<2**9=", "<<1+1=2>>=", "",
                 "<<" + "1+" * 32 + "1="):  # fmt: skip
        assert said(text) == "", text


@pytest.mark.parametrize(
    ("expression", "value"),
    [("48/2", "24"), ("3/4", "0.75"), (".5*3", "1.5"), ("2-5", "-3"), ("0.1+0.2", "0.3"), ("(1+2)*-3", "-9"),
     ("1/3", "0.3333333333"), ("10*10", "100"), ("2/3", "0.6666666667"), ("-1/3", "-0.3333333333"), ("5-5", "0"),
     ("-0", "0"), ("5.", "5"), ("194*150", "29100"), ("100000000*300000000000", "30000000000000000000")],
)  # fmt: skip
def test_values_are_written_as_people_write_them(expression, value):
    assert answer(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["1/0", "1/(2-2)", "2**9999", "9**9**9", "7//2", "()", "((1)", "(1)(2)", "1.2.3", "05", "1 if 1 else 2", "True",
     "__import__('os')", "a", "'a'*9", "[1]", "1,2", "0x10", "1j", "1<2", "~1", "not 1", "lambda: 1", "\0", "1\n+1+",
     "9" * 64, "9*" * 31 + "9", "(" * 500 + "1" + ")" * 500, "1" + "+1" * 5000, "1e400", ""],
)  # fmt: skip
def test_anything_else_has_no_value(expression):
    assert answer(expression) is None


def test_real_annotations():
    """The 4,282 annotations that people wrote on GSM8K's test problems: all values, nearly all spelled the same."""
    if GSM8K is None:
        pytest.skip("RLHF_GSM8K does not name GSM8K's test.jsonl")
    text = "".join(json.loads(line)["answer"] for line in Path(GSM8K).read_text().splitlines())
    found = [pair for pair in re.findall(r"<<([^<>=]*)=([^<>=]*)>>", text) if pair[1] != "3/4"]
    assert len(found) > 4000
    values = [answer(re.sub(r"(?<![\d.])0+(?=\d)", "", expression)) for expression, _ in found]
    assert all(value is not None for value in values)
    assert all(Fraction(value) == Fraction(said) for value, (_, said) in zip(values, found, strict=True))
    assert sum(value == said for value, (_, said) in zip(values, found, strict=True)) > 0.96 * len(found)


@pytest.fixture
def with_parrot(start):
    """A stage whose rollouts hold inserted tokens; the policy has moved away from the reference."""

    def make(*overrides):
        started = start(*overrides)
        started.run.settings.rollout = Parrot(max_new_tokens=12)
        with torch.no_grad():
            for parameter in started.algorithm.policy.model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        return started

    return make


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("budget", [60, 100_000])
def test_the_ratio_is_one(with_parrot, ppo, grpo, algorithm, budget):
    overrides = {"ppo": ppo, "grpo": grpo}[algorithm]("llama", f"trainer.microbatch_tokens={budget}")
    started = with_parrot(*overrides)
    batch = started.algorithm.collect(0)
    for part in next(iter(started.algorithm.minibatches(batch))):
        metrics = started.algorithm.loss(part).metrics
        for name, expected in (("ratio_max", 1), ("ratio_mean", 1), ("approx_kl", 0), ("clip_frac", 0)):
            assert float(metrics[name]) == pytest.approx(expected, abs=2e-5), name
    assert batch.experience.statistics()["length"] < 11  # only what was chosen is counted


def left_out(model, old):
    """For each sequence: where its chosen tokens are, and their log-probs, of a plain forward over its whole text."""
    rows = zip(old.packed.split(old.packed.tokens), old.packed.split(old.mask), strict=True)
    for tokens, mask in rows:
        places = mask.nonzero()[:, 0]
        logits = model.model(tokens[None]).logits[0]
        yield places, logits[places - 1].log_softmax(-1).gather(1, tokens[places][:, None])[:, 0]


def gradients_of(started, minibatch):
    started.module.zero_grad()
    for part in minibatch:
        started.algorithm.loss(part).value.backward()
    return {name: p.grad.clone() for name, p in started.module.named_parameters() if p.grad is not None}


def assert_same_gradients(started, found):
    expected = {name: p.grad for name, p in started.module.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6, msg=name)
    assert max(float(gradient.abs().max()) for gradient in found.values()) > 1e-3


def test_grpo_takes_no_gradient_from_inserted_tokens(with_parrot, grpo):
    """−mean over responses of 1/|chosen| Σ over chosen A·ρ, in a loop that never sees another log-prob."""
    started = with_parrot(*grpo("llama", "algorithm.kl_coef=0", "trainer.microbatch_tokens=90"))
    batch = started.algorithm.collect(0)
    found = gradients_of(started, next(iter(started.algorithm.minibatches(batch))))
    started.module.zero_grad()
    old = batch.experience
    for index, (places, logprobs) in enumerate(left_out(started.algorithm.policy, old)):
        first = int(old.packed.cu_seqlens[index])
        ratio = (logprobs - old.logprobs[first + places]).exp()
        (-(ratio * old.advantages[first + places]).mean() / len(old.scores)).backward()
    assert_same_gradients(started, found)


def test_ppo_takes_no_gradient_from_inserted_tokens(with_parrot, ppo):
    """−Σ A·ρ + ½·½·Σ (V − R)² over chosen tokens, ÷ their number; V of the state before each."""
    started = with_parrot(*ppo("llama", "algorithm.minibatches_a_pass=1", "trainer.microbatch_tokens=60"))
    started.algorithm.critic.reset_head(0.5)
    batch = started.algorithm.collect(0)
    found = gradients_of(started, next(iter(started.algorithm.minibatches(batch))))
    started.module.zero_grad()
    old, critic = batch.experience, started.algorithm.critic
    count, white = int(old.mask.sum()), whitened(old.advantages, *old.moments)
    rows = zip(left_out(started.algorithm.policy, old), old.packed.split(old.packed.tokens), strict=True)
    for index, ((places, logprobs), tokens) in enumerate(rows):
        there = int(old.packed.cu_seqlens[index]) + places
        values = critic(old.packed.slice(index, index + 1))[places - 1]
        ratio = (logprobs - old.logprobs[there]).exp()
        loss = -(ratio * white[there]).sum() + 0.25 * (values - old.returns[there]).square().sum()
        (loss / count).backward()
        assert len(tokens) > len(places)
    assert_same_gradients(started, found)


def test_gae_carries_over_inserted_tokens(with_parrot, ppo):
    """CORRECTNESS 6 on a real rollout: a loop over the chosen tokens alone, as if the others were not there."""
    started = with_parrot(*ppo("llama", "algorithm.kl_coef=0.1", "algorithm.gamma=0.97"))
    started.algorithm.critic.reset_head(0.5)
    old = started.algorithm.collect(0).experience
    gaps = 0
    for index, mask in enumerate(old.packed.split(old.mask)):
        there = int(old.packed.cu_seqlens[index]) + mask.nonzero()[:, 0]
        gaps += int((there.diff() > 1).sum())
        value, kl = old.values[there].double(), (old.logprobs - old.ref_logprobs)[there].double()
        running, after = 0.0, 0.0
        for place in reversed(range(len(there))):
            reward = -0.1 * kl[place] + (old.scores[index] if place == len(there) - 1 else 0.0)
            delta = reward + 0.97 * after - value[place]
            running, after = delta + 0.97 * 0.95 * running, value[place]
            assert float(old.advantages[there[place]]) == pytest.approx(float(running), abs=1e-4)
    assert gaps > 5
    assert not old.advantages[~old.mask].any() and not old.values[~old.mask].any()


def test_rewards_read_the_whole_text(with_parrot, grpo):
    class Reading:
        def setup(self, run):
            pass

        def score(self, samples):
            self.samples = samples
            return torch.tensor([float(len(text)) for text in samples.responses])

    started = with_parrot(*grpo("llama"))
    reward = started.run.settings.reward = Reading()
    old = started.algorithm.collect(0).experience
    said = decode(started.algorithm.policy.tokenizer, Parrot.says)
    assert sum(said in text for text in reward.samples.responses) > 4
    for ids, text, score in zip(reward.samples.response_ids, reward.samples.responses, old.scores, strict=True):
        assert text == decode(started.algorithm.policy.tokenizer, ids)
        assert float(score) == len(text)
    assert sum(map(len, reward.samples.response_ids)) > int(old.mask.sum())


def test_calculator_is_a_plugin(start, grpo):
    started = start(*grpo("llama"), "rollout=calculator", "rollout.max_new_tokens=5")
    assert isinstance(started.run.rollout, Calculator)
    batch = started.algorithm.collect(0)
    assert int(batch.experience.mask.sum()) > 0
