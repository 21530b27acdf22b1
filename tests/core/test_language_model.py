"""The policy's wrapper: the frozen reference, dropout off, what it refuses, adapters."""

import pytest
import torch
import transformers

from rlhf_core.batch import Packed
from rlhf_core.errors import UserError
from rlhf_core.language_model import LanguageModel
from rlhf_plugins.policy.hf import HF, LoRA

ROW = Packed.of([[5, 6, 7, 8, 9], [20, 21, 22]])


@pytest.fixture
def adapted(checkpoints):
    """A Llama with LoRA adapters that have been trained a little: their second factor is no longer zero."""
    model = HF(path=str(checkpoints["llama"]), lora=LoRA(rank=4)).language_model(None)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    model.model.eval()
    return model


def train_a_step(model):
    optimizer = torch.optim.SGD([p for p in model.model.parameters() if p.requires_grad], lr=1.0)
    (-model.logprobs(ROW).sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_reference_is_frozen_and_in_eval_mode(checkpoints, kind):
    model = HF(path=str(checkpoints[kind])).language_model(None)
    model.model.train()
    reference = model.frozen()
    assert not reference.model.training and not any(p.requires_grad for p in reference.model.parameters())
    with torch.no_grad():
        before = reference.logprobs(ROW)
        assert torch.equal(before, reference.logprobs(ROW))  # no dropout
    model.model.eval()
    train_a_step(model)
    with torch.no_grad():
        assert torch.equal(reference.logprobs(ROW), before)
        assert not torch.allclose(model.logprobs(ROW), before, atol=1e-3)
    dtypes = {p.dtype for p in reference.model.parameters()}
    assert dtypes == {p.dtype for p in model.model.parameters()}


def test_the_reference_of_a_lora_model_is_the_base_without_adapters(adapted, checkpoints):
    base = HF(path=str(checkpoints["llama"])).language_model(None)
    base.model.eval()
    reference = adapted.frozen()
    assert reference.model is adapted.model  # no second copy
    with torch.no_grad():
        expected, before = base.logprobs(ROW), adapted.logprobs(ROW)
        torch.testing.assert_close(reference.logprobs(ROW), expected, rtol=0, atol=1e-5)
        assert torch.equal(adapted.logprobs(ROW), before)  # the adapters are on again
        assert not torch.allclose(before, expected, atol=1e-2)
    train_a_step(adapted)
    with torch.no_grad():
        torch.testing.assert_close(reference.logprobs(ROW), expected, rtol=0, atol=1e-5)


def test_lora_trains_adapters_alone_and_is_saved_merged(adapted, checkpoints, tmp_path):
    trained = [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    adapted.save(tmp_path / "merged")
    merged = HF(path=str(tmp_path / "merged")).language_model(None)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(merged.logprobs(ROW), adapted.logprobs(ROW), rtol=0, atol=1e-4)
    assert [name for name, p in adapted.model.named_parameters() if p.requires_grad] == trained  # still adapters


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_turns_dropout_and_gradients_off_and_puts_them_back(checkpoints, training):
    model = HF(path=str(checkpoints["gpt2"])).language_model(None)
    model.model.train(training)
    with model.evaluating():
        assert not model.model.training and not torch.is_grad_enabled()
    assert model.model.training is training and torch.is_grad_enabled()
    with pytest.raises(KeyError), model.evaluating():
        raise KeyError
    assert model.model.training is training and torch.is_grad_enabled()


def test_a_bias_of_the_head_is_counted(new_model, tokenizer):
    model = new_model("llama")
    head = torch.nn.Linear(32, len(tokenizer))
    torch.nn.init.normal_(head.bias)
    model.set_output_embeddings(head)
    ours = LanguageModel(model, tokenizer)
    with torch.no_grad():
        full = model(torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1)
        expected = torch.stack([torch.zeros(()), full[0, 6], full[1, 7]])
        torch.testing.assert_close(ours.logprobs(Packed.of([[5, 6, 7]])), expected, rtol=0, atol=1e-5)


def test_models_whose_logits_are_more_than_the_head_are_refused(new_model, tokenizer):
    with pytest.raises(UserError, match="policy: models with final_logit_softcapping are not supported yet"):
        LanguageModel(new_model("llama", final_logit_softcapping=30.0), tokenizer)


def test_a_tokenizer_without_an_end_token_is_refused(new_model, texts):
    from rlhf_plugins.policy.tiny import learn_tokenizer

    endless = learn_tokenizer(texts, 300)
    endless.eos_token = None
    with pytest.raises(UserError, match="policy: the tokenizer has no end token"):
        LanguageModel(new_model("llama"), endless)


@pytest.mark.parametrize("architecture", ["Bloom"])
def test_a_model_that_cannot_run_packed_is_refused(architecture, checkpoints):
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=64, hidden_size=32, n_embd=32, n_layer=1, n_head=2, n_positions=32, rotary_dim=8
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    tokenizer = HF(path=str(checkpoints["llama"])).language_model(None).tokenizer
    with pytest.raises(UserError, match=f"policy: {architecture}ForCausalLM "):
        LanguageModel(model, tokenizer)
