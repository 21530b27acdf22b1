"""Our attention inside real architectures: packed rows and padded batches equal stock calls, one sequence at a time."""

import pytest
import torch

from rlhf_core.batch import Packed
from rlhf_core.language_model import LanguageModel, hidden_states

ROUNDING = 2e-5
"""Of float32: both softmaxes and norms are taken in it whatever the dtype of the weights."""

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 5, 6], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7]]


WINDOW = {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["sliding_attention"] * 2}
SCALED = {"scale_attn_by_inverse_layer_idx": True}


@pytest.fixture(
    params=[("llama", {}), ("qwen2", {}), ("qwen2", WINDOW), ("gpt2", {}), ("gpt2", SCALED)],
    ids=["llama", "qwen2", "qwen2 with a window", "gpt2", "gpt2 with a scale of its own"],
)
def models(request, new_model, tokenizer):
    """The same weights with transformers' own eager attention, and with ours."""
    kind, options = request.param
    stock, ours = new_model(kind, **options), new_model(kind, **options)
    assert stock.config._attn_implementation == "eager"
    return stock, LanguageModel(ours, tokenizer)


def test_packed_rows_equal_separate_calls(models):
    stock, ours = models
    packed = Packed.of(SEQUENCES)
    expected = [stock.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in SEQUENCES]
    torch.testing.assert_close(hidden_states(ours.model, packed), torch.cat(expected), rtol=0, atol=ROUNDING)


def test_gradients_equal_those_of_separate_calls(models):
    stock, ours = models
    packed = Packed.of(SEQUENCES)
    weights = torch.linspace(-1, 1, len(packed.tokens))
    (ours.logprobs(packed, temperature=0.7) * weights).sum().backward()
    total = 0.0
    for ids, share in zip(SEQUENCES, packed.split(weights), strict=True):
        logprobs = (stock(torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)
        total = total + sum(share[t] * logprobs[t - 1, ids[t]] for t in range(1, len(ids)))
    total.backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_logprobs_and_entropy_equal_stock_logits(models):
    stock, ours = models
    with torch.no_grad():
        logprobs, entropy = ours.logprobs_and_entropy(Packed.of(SEQUENCES), temperature=1.7)
        alone = ours.logprobs(Packed.of(SEQUENCES), temperature=1.7)
    expected, entropies = [], []
    for ids in SEQUENCES:
        full = (stock(torch.tensor([ids])).logits[0].detach() / 1.7).log_softmax(-1)
        expected += [0.0] + [float(full[t - 1, ids[t]]) for t in range(1, len(ids))]
        entropies += [0.0] + [float(-(full[t - 1].exp() * full[t - 1]).sum()) for t in range(1, len(ids))]
    torch.testing.assert_close(logprobs, torch.tensor(expected), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(entropy, torch.tensor(entropies), rtol=0, atol=ROUNDING)
    assert torch.equal(alone, logprobs)


def test_left_padded_batches_with_a_mask_equal_separate_calls(models):
    stock, ours = models
    longest = max(map(len, SEQUENCES))
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in SEQUENCES])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in SEQUENCES])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = ours.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        for row, one in zip(logits, SEQUENCES, strict=True):
            expected = stock(torch.tensor([one])).logits[0]
            torch.testing.assert_close(row[-len(one) :], expected, rtol=0, atol=ROUNDING)


def test_generate_equals_stock(models):
    stock, ours = models
    ids, mask = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 3}
    assert torch.equal(ours.model.generate(ids, **options), stock.generate(ids, **options))


def test_a_long_row_of_many_sequences_keeps_learned_positions_in_range(new_model, tokenizer):
    ours = LanguageModel(new_model("gpt2", n_positions=96), tokenizer)
    many = Packed.of([[5, 6, 7, 8]] * 40)  # 160 tokens in one row, of a model with 96 positions
    with torch.no_grad():
        logprobs = ours.logprobs(many).view(40, 4)
    torch.testing.assert_close(logprobs, logprobs[:1].expand(40, 4), rtol=0, atol=1e-5)
