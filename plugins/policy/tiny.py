"""A small Llama with a tokenizer of its own, both made from the data: a policy that trains on a laptop."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_core.contracts.data import Data
from rlhf_core.errors import UserError
from rlhf_core.language_model import LanguageModel

from .hf import HF

END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|assistant|>{{ message.content }}<|end|>"
    "{% else %}<|user|>{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass
class Tiny(HF):
    """A Llama of about a million parameters; without a ``path`` it starts from nothing and learns its tokenizer."""

    rlhf_api: ClassVar[int] = 1

    vocabulary: int = 4096  # tokens of the byte-level BPE
    hidden: int = 128
    layers: int = 4
    heads: int = 2
    context: int = 256  # longest sequence, in tokens

    def language_model(self, data: Data) -> LanguageModel:
        """The model at ``path``, else a new one."""
        if self.path is not None:
            return super().language_model(data)
        tokenizer = learn_tokenizer(data.text("train"), self.vocabulary)
        return LanguageModel(self._new_model(tokenizer), tokenizer)

    def _new_model(self, tokenizer: Any) -> LlamaForCausalLM:
        if self.hidden % (2 * self.heads):
            raise UserError(f"policy.hidden: {self.hidden} must be an even multiple of policy.heads={self.heads}")
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=8 * self.hidden // 3 // 32 * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():  # residual branches start small (Radford et al. 2019, GPT-2, §2.3)
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_((2 * self.layers) ** -0.5)
        return model


def learn_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE; every piece of text starts with a space, so a word is one token wherever it stands."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, USER, ASSISTANT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
