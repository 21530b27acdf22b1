"""A prompt computed once for all its responses gives what transformers' own forward gives of each sequence alone."""

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_core import kernels
from rlhf_core.batch import IGNORED, Packed
from rlhf_core.language_model import LanguageModel, hidden_states
from rlhf_core.packing import per_token, within
from rlhf_core.scalar_model import ScalarModel

PAD = 3
"""No sequence holds it: stock classifiers look for the last token that is not padding."""

LONG = [5 + (7 * place) % 90 for place in range(70)]  # longer than a tile of the compiled kernel
SHORT = [20, 21, 22]
PROMPTS = [LONG, LONG, LONG, SHORT, [30, 31], [30, 31], SHORT, SHORT, LONG]
RESPONSES = [[6, 7, 8, 9], [7] * 25, [40], [8, 9], [10, 11, 12], [13], [], [14, 15, 16, 17], [18, 19]]
"""Groups of 3, 1, 2, 2 and 1; one response is empty, and equal prompts lie apart too."""

WINDOW = {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": ("llama", {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "smollm2": ("llama", {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3,
                          "tie_word_embeddings": True, "initializer_range": 0.06}),
    "qwen2": ("qwen2", {"hidden_size": 128}),
    "qwen2 with a window": ("qwen2", {"hidden_size": 128, **WINDOW}),
    "qwen3": ("qwen3", {}),
    "gpt2": ("gpt2", {"n_embd": 64}),
    "head size 8": ("llama", {}),
}  # fmt: skip


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def models(family, new_model, tokenizer):
    """The same weights with transformers' own eager attention, and with ours."""
    kind, options = FAMILIES[family]
    kernels.set_backend()  # and nothing has been used yet
    return new_model(kind, **options), LanguageModel(new_model(kind, **options), tokenizer)


@pytest.fixture
def scalars(models, tokenizer):
    """The same for classifiers of one label, whose head is a random one."""
    config = copy.deepcopy(models[0].config)
    config.num_labels, config.pad_token_id = 1, PAD
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        stock = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
        stock.score.weight.data.normal_(0, 0.3)
    ours = ScalarModel(copy.deepcopy(stock), tokenizer)
    ours.bias.fill_(0.5)
    return stock, ours


def packed_row():
    return Packed.answers(PROMPTS, RESPONSES)


def sequences():
    return [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


def stock_rows(call, padding):
    """Each sequence's rows of ``call``'s output, one sequence at a time or of one padded batch."""
    rows = sequences()
    if padding == "none":
        return [call(input_ids=torch.tensor([row]))[0] for row in rows]
    longest = max(map(len, rows))
    gaps = [[PAD] * (longest - len(row)) for row in rows]
    left = padding == "left"
    ids = torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])
    mask = (ids != PAD).long()
    out = call(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    return [found[there] for found, there in zip(out, mask.bool(), strict=True)]


def assert_compiled(family):
    """Head sizes that the compiled kernel takes went through it; others by the definition."""
    built = next(row for row in kernels.status() if (row["op"], row["backend"]) == ("attention", "cpu"))["available"]
    assert kernels.used()["attention"]["backend"] == ("cpu" if built and family != "head size 8" else "eager")


def close(found, expected):
    """Within the rounding of float32, relative to the largest number there."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * scale)


padded = pytest.mark.parametrize("padding", ["none", "left", "right"])


@padded
def test_hidden_states(models, family, padding):
    stock, ours = models
    row = packed_row()
    with torch.no_grad():
        folded = hidden_states(ours.model, row)
        expected = stock_rows(lambda **batch: stock.base_model(**batch).last_hidden_state, padding)
    assert len(folded) == len(row.folded.tokens) == len(row.tokens) - 2 * len(LONG) - 2 - len(SHORT)
    close(row.folded.unfolded(folded), torch.cat(expected))
    assert_compiled(family)


@padded
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_logprobs_and_entropy(models, family, padding, temperature):
    stock, ours = models
    row = packed_row()
    with torch.no_grad():
        logprobs, entropy = ours.logprobs_and_entropy(row, temperature)
        alone = ours.logprobs(row, temperature)
        logits = stock_rows(lambda **batch: stock(**batch).logits, padding)
    expected, entropies = [], []
    for ids, prompt, found in zip(sequences(), PROMPTS, logits, strict=True):
        full = (found / temperature).log_softmax(-1)
        chosen = [float(full[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]
        expected += [0.0] * len(prompt) + chosen
        uncertain = [float(-(full[t - 1].exp() * full[t - 1]).sum()) for t in range(len(prompt), len(ids))]
        entropies += [0.0] * len(prompt) + uncertain
    close(logprobs, torch.tensor(expected))
    close(entropy, torch.tensor(entropies))
    assert torch.equal(alone, logprobs)
    assert_compiled(family)


@padded
def test_scores(scalars, family, padding):
    """At every token, and at the last one, where the stock classifier reads it too."""
    stock, ours = scalars
    row = packed_row()
    with torch.no_grad():
        everywhere, last = ours(row), ours.last(row)
        rows = stock_rows(lambda **batch: stock.score(stock.base_model(**batch).last_hidden_state), padding)
        read = stock_rows(lambda **batch: stock(**batch).logits[:, :, None], "none")
    expected = torch.cat(rows)[:, 0] - 0.5
    close(everywhere, expected)
    close(last, expected[row.cu_seqlens[1:].long() - 1])
    close(last, torch.stack([logits.squeeze() for logits in read]) - 0.5)
    assert_compiled(family)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_last_equals_the_stock_classifier_on_padded_batches(scalars, padding):
    stock, ours = scalars
    rows = sequences()
    longest = max(map(len, rows))
    gaps = [[PAD] * (longest - len(row)) for row in rows]
    ids = torch.tensor([gap + row if padding == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)])
    mask = (ids != PAD).long()
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        close(ours.last(packed_row()), expected[:, 0] - 0.5)


def assert_same_gradients(ours, stock):
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            scale = float(expected[name].abs().max())
            atol = 5e-5 * scale + 1e-7
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_gradients_of_logprobs_and_entropy(models, family):
    stock, ours = models
    row = packed_row()
    weights = torch.linspace(-1, 1, len(row.tokens))
    logprobs, entropy = ours.logprobs_and_entropy(row, 0.7)
    (logprobs * weights + entropy * weights.flip(0)).sum().backward()
    assert_compiled(family)
    total = 0.0
    shares, others = row.split(weights), row.split(weights.flip(0))
    for ids, prompt, share, other in zip(sequences(), PROMPTS, shares, others, strict=True):
        full = (stock(torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)
        for t in range(len(prompt), len(ids)):
            total = total + share[t] * full[t - 1, ids[t]] - other[t] * (full[t - 1].exp() * full[t - 1]).sum()
    total.backward()
    assert_same_gradients(ours.model, stock)


@pytest.mark.parametrize("what", ["every token", "last"])
def test_gradients_of_scores(scalars, family, what):
    stock, ours = scalars
    row = packed_row()
    values = ours(row) if what == "every token" else ours.last(row)
    weights = torch.linspace(-1, 2, len(values))  # a sum of 0 would cancel the bias's gradient
    (values * weights).sum().backward()
    assert_compiled(family)
    hidden = [stock.base_model(torch.tensor([ids])).last_hidden_state[0] for ids in sequences()]
    rows = torch.cat(hidden if what == "every token" else [found[-1:] for found in hidden])
    (stock.score(rows)[:, 0] * weights).sum().backward()
    assert_same_gradients(ours.model, stock)


def test_a_row_in_pieces_equals_the_whole(models):
    """Cut where a group has to be, a prompt is computed again in the next piece."""
    _, ours = models
    row = packed_row()
    with torch.no_grad():
        whole = ours.logprobs(row)
        for budget in (1, 80, 110):
            assert len(list(within(row.costs, budget))) > 1
            close(per_token(ours.logprobs, row, budget), whole)


def test_sharing_changes_nothing_but_the_work(models):
    _, ours = models
    row = packed_row()
    plain = Packed(row.tokens, row.cu_seqlens, row.predicted)
    assert plain.folded.rows is None and len(plain.folded.tokens) > len(row.folded.tokens)
    with torch.no_grad():
        close(ours.logprobs(row), ours.logprobs(plain))
    assert torch.equal(plain.targets, row.targets) and int((row.targets != IGNORED).sum()) == sum(map(len, RESPONSES))


def test_responses_do_not_see_each_other(models):
    _, ours = models
    other = [[*response[:-1], 99] if place == 1 else response for place, response in enumerate(RESPONSES)]
    with torch.no_grad():
        before = packed_row().split(ours.logprobs(packed_row()))
        after = Packed.answers(PROMPTS, other)
        after = after.split(ours.logprobs(after))
    assert [torch.equal(one, two) for one, two in zip(before, after, strict=True)] == [
        place != 1 for place in range(len(PROMPTS))
    ]
