"""How a token is drawn from hidden states, compiled and by torch, and linear layers made for few rows."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_core.kernels.native.linear import MOST_ROWS, FewRows, few_rows
from rlhf_core.kernels.native.products import BF16
from rlhf_core.kernels.native.scalars import BUILT
from rlhf_core.language_model import LanguageModel, reached

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
DRAWS = 4000

built = pytest.mark.skipif(not BUILT, reason="without the compiled extension")


@pytest.fixture
def model(new_model, tokenizer):
    """A Llama whose head has a bias and says no two tokens are alike."""
    model = LanguageModel(new_model("llama"), tokenizer)
    head = model.model.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        head.bias = torch.nn.Parameter(torch.randn(len(head.weight)))
        head.weight.data.normal_(0, 0.4)
    return model


@pytest.fixture(params=[pytest.param("compiled", marks=built), "torch"])
def path(request, monkeypatch):
    """Both ways to draw."""
    if request.param == "torch":
        monkeypatch.setattr("rlhf_core.language_model.compiled_for", lambda weight: False)
    else:
        monkeypatch.setattr("rlhf_core.language_model.LanguageModel.next_token", None)  # not by way of all log-probs
    return request.param


def states(rows, seed=0):
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed))


def uniform(rows, seed=0):
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(model, hidden, temperature, dtype=FLOAT32):
    """``[n, V]`` float64 log-probs of the head in the numbers it multiplies."""
    head = model.model.get_output_embeddings()
    logits = F.linear(hidden.to(dtype).double(), head.weight.to(dtype).double(), head.bias.double())
    return (logits.detach() / temperature).log_softmax(-1)


def chi_square(tokens, probabilities):
    """The statistic of counts against probabilities, rare tokens taken together, and its degrees of freedom."""
    expected = len(tokens) * probabilities
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    big = expected > 5
    observed = torch.cat([counts[big], counts[~big].sum()[None]])
    wanted = torch.cat([expected[big], expected[~big].sum()[None]]).clamp(min=1e-9)
    return float(((observed - wanted) ** 2 / wanted).sum()), int(big.sum())


@pytest.mark.parametrize("dtype", [None, pytest.param(BFLOAT16, marks=pytest.mark.skipif(not BF16, reason="widened"))])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_draws_follow_the_distribution(model, path, temperature, dtype):
    hidden = states(1).expand(DRAWS, -1).contiguous()
    draw = model.sampler(temperature, dtype)
    with torch.no_grad():
        tokens, logprobs = draw(hidden, uniform(len(hidden), seed=3))
    everything = exact(model, hidden[:1], temperature, dtype or FLOAT32)[0]
    statistic, freedom = chi_square(tokens, everything.exp())
    assert freedom > 20
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    torch.testing.assert_close(logprobs, everything[tokens].float(), rtol=0, atol=2e-5)
    other, _ = chi_square(tokens, exact(model, hidden[:1], temperature * 1.2, dtype or FLOAT32)[0].exp())
    assert other > freedom + 4 * math.sqrt(2 * freedom)  # the test tells temperatures apart


@pytest.mark.parametrize("rows", [1, 3, 40, 300])
def test_each_row_has_its_own_distribution(model, path, rows):
    hidden = states(rows, seed=rows)
    with torch.no_grad():
        tokens, logprobs = model.sampler(1.3)(hidden, uniform(len(hidden), seed=0))
    assert tokens.shape == logprobs.shape == (rows,)
    assert tokens.dtype == torch.int64 and logprobs.dtype == FLOAT32
    expected = exact(model, hidden, 1.3).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected.float(), rtol=0, atol=2e-5)


@built
def test_both_ways_draw_the_same_tokens(model, monkeypatch):
    """One uniform number a row and the inverse distribution function: but for rounding at a border, one answer."""
    hidden = states(DRAWS)
    with torch.no_grad():
        compiled, _ = model.sampler(0.8)(hidden, uniform(len(hidden), seed=1))
        monkeypatch.setattr("rlhf_core.language_model.compiled_for", lambda weight: False)
        by_torch, _ = model.sampler(0.8)(hidden, uniform(len(hidden), seed=1))
    assert float((compiled != by_torch).float().mean()) < 2e-3
    assert len(set(compiled.tolist())) > 100


def test_a_sharp_distribution_gives_its_one_token(model, path):
    hidden = states(50)
    with torch.no_grad():
        tokens, logprobs = model.sampler(1e-3)(hidden, uniform(len(hidden), seed=0))
    everything = exact(model, hidden, 1e-3)
    sure = everything.max(1).values > -1e-6
    assert int(sure.sum()) > 40
    assert torch.equal(tokens[sure], everything.argmax(1)[sure])
    torch.testing.assert_close(logprobs[sure], torch.zeros(int(sure.sum())), rtol=0, atol=1e-3)


def test_a_token_depends_on_its_own_number_and_state_alone(model, path):
    hidden, numbers = states(40), uniform(40)
    draw = model.sampler(1.0)
    with torch.no_grad():
        whole, _ = draw(hidden, numbers)
        parts = [draw(hidden[some], numbers[some])[0] for some in (slice(0, 1), slice(1, 7), slice(7, 40))]
    assert torch.equal(whole, torch.cat(parts))


def test_the_inverse_distribution_function_by_hand():
    shares = torch.tensor([[2.0, 0.0, 1.0, 1.0]]).expand(6, -1)
    numbers = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert reached(shares, numbers).tolist() == [0, 0, 2, 2, 3, 3]


def layers(model):
    return [layer for layer in model.model.modules() if type(layer) is torch.nn.Linear]


@built
@pytest.mark.parametrize("dtype", [None, pytest.param(BFLOAT16, marks=pytest.mark.skipif(not BF16, reason="widened"))])
@pytest.mark.parametrize("rows", [1, 5, 64, MOST_ROWS, MOST_ROWS + 1])
def test_few_rows_gives_what_the_layers_give(model, rows, dtype):
    x = states(rows)[None]
    with torch.no_grad(), torch.autocast("cpu", BFLOAT16, enabled=dtype is not None):
        expected = [layer(x.repeat(1, 1, 2)[..., : layer.in_features]) for layer in layers(model)]
        with few_rows(model.model, dtype):
            assert all(isinstance(layer.forward, FewRows) for layer in layers(model))
            found = [layer(x.repeat(1, 1, 2)[..., : layer.in_features]) for layer in layers(model)]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype == (dtype or FLOAT32)
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 if dtype is None else 0.05)


def test_few_rows_puts_every_layer_back(model):
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    with few_rows(model.model, None):
        assert any("forward" in vars(layer) for layer in layers(model)) == BUILT
    assert not any("forward" in vars(layer) for layer in layers(model))
    with pytest.raises(KeyError), few_rows(model.model, None):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layers(model))
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_an_exception_while_decoding_leaves_the_model_as_it_was(model):
    model.model.train()
    with pytest.raises(KeyError), model.decoding() as dtype:
        assert dtype is None and torch.is_inference_mode_enabled() and not model.model.training
        raise KeyError
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert model.model.training and not any("forward" in vars(layer) for layer in layers(model))


def test_few_rows_leaves_layers_of_other_kinds_alone(checkpoints):
    """Under LoRA the adapted layers are peft's own; the plain ones inside them are ours."""
    from rlhf_plugins.policy.hf import HF, LoRA

    model = HF(path=str(checkpoints["llama"]), lora=LoRA(rank=2)).language_model(None)
    wrapped = [layer for layer in model.model.modules() if hasattr(layer, "base_layer")]
    with few_rows(model.model, None):
        assert wrapped and not any("forward" in vars(layer) for layer in wrapped)
        assert any("forward" in vars(layer.base_layer) for layer in wrapped) == BUILT
