"""One number a token: heads, the bias, and where a score is read."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_core.batch import Packed
from rlhf_plugins.policy.hf import HF, LoRA

SEQUENCES = [[5, 6, 7, 0, 0], [8], [0, 9, 3, 3], [10, 11, 12, 13, 14, 15, 0]]
"""Token 0 ends and token 3 pads: both occur inside sequences and at their end."""


@pytest.fixture(params=["llama", "gpt2"])
def scalar(request, checkpoints):
    model = HF(path=str(checkpoints[request.param])).scalar_model().eval()
    torch.manual_seed(0)
    model.reset_head(0.5)
    return model


def test_scores_are_read_at_each_sequences_last_token(scalar):
    with torch.no_grad():
        last = scalar.last(Packed.of(SEQUENCES))
        for sequence, score in zip(SEQUENCES, last, strict=True):
            hidden = scalar.model.base_model(torch.tensor([sequence])).last_hidden_state[0, -1]
            assert float(score) == pytest.approx(float(scalar.head.weight[0] @ hidden), abs=1e-5)
        everywhere = scalar(Packed.of(SEQUENCES))
    ends = torch.tensor([4, 5, 9, 16])
    torch.testing.assert_close(everywhere[ends], last)
    assert everywhere.dtype == last.dtype == torch.float32


def test_neighbours_in_the_row_do_not_matter(scalar):
    with torch.no_grad():
        together = scalar.last(Packed.of(SEQUENCES))
        alone = torch.cat([scalar.last(Packed.of([sequence])) for sequence in SEQUENCES])
        backwards = scalar.last(Packed.of(SEQUENCES[::-1])).flip(0)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, backwards, rtol=0, atol=1e-5)


def test_a_head_of_zeros_values_everything_at_zero(scalar):
    scalar.bias.fill_(3.0)
    scalar.reset_head(std=0.0)
    with torch.no_grad():
        assert not scalar(Packed.of(SEQUENCES)).any()
    scalar(Packed.of(SEQUENCES)).sum().backward()
    assert scalar.head.weight.grad.abs().sum() > 0  # and yet it learns


def test_the_head_is_drawn_with_the_asked_deviation(new_model, tokenizer, tmp_path):
    new_model("llama", hidden_size=1024, num_hidden_layers=1, head_dim=8).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wide = HF(path=str(tmp_path)).scalar_model()
    wide.reset_head(std=0.03)
    weight = wide.head.weight.detach()
    assert float(weight.std()) == pytest.approx(0.03, rel=0.1)
    assert abs(float(weight.mean())) < 0.005


@pytest.mark.parametrize("rank", [0, 4])
def test_the_bias_is_subtracted_and_travels_in_the_checkpoint(checkpoints, tmp_path, rank):
    model = HF(path=str(checkpoints["llama"]), lora=LoRA(rank=rank)).scalar_model().eval()
    model.reset_head(0.5)
    with torch.no_grad():
        plain = model.last(Packed.of(SEQUENCES))
        model.bias += 1.75
        shifted = model.last(Packed.of(SEQUENCES))
    torch.testing.assert_close(shifted, plain - 1.75)
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["score_bias"] == 1.75
    again = HF(path=str(tmp_path / "saved")).scalar_model().eval()
    with torch.no_grad():
        torch.testing.assert_close(again.last(Packed.of(SEQUENCES)), shifted, rtol=0, atol=1e-4)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = stock(torch.tensor([SEQUENCES[3]])).logits[0, 0] - 1.75
    assert float(logits) == pytest.approx(float(shifted[3]), abs=1e-4)


def test_lora_trains_the_adapters_and_the_head(checkpoints):
    model = HF(path=str(checkpoints["llama"]), lora=LoRA(rank=4)).scalar_model()
    model.reset_head(0.5)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score" in name for name in trained)
    model.last(Packed.of(SEQUENCES)).sum().backward()
    assert model.head.weight.requires_grad and model.head.weight.grad.abs().sum() > 0
