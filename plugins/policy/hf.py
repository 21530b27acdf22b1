"""Any transformers causal language model, whole or through LoRA adapters."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from rlhf_core.contracts.data import Data
from rlhf_core.errors import UserError
from rlhf_core.language_model import LanguageModel
from rlhf_core.scalar_model import ScalarModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class LoRA:
    """Low-rank adapters on all linear layers (Hu et al. 2021, arXiv:2106.09685), by peft."""

    rank: int = 0  # 0 trains the whole model
    alpha: float = 32.0  # the adapters' output is scaled by alpha / rank


@dataclass
class HF:
    """A causal LM from a local folder (a stage's result, a download) or, online, from the hub."""

    rlhf_api: ClassVar[int] = 1

    path: str | None = None  # a checkpoint folder, or a name on the hub
    dtype: str = "float32"  # of the weights: float32 or bfloat16
    lora: LoRA = field(default_factory=LoRA)
    trust_remote_code: bool = False  # run code that comes with the checkpoint

    def language_model(self, data: Data) -> LanguageModel:
        """The model at ``path``, adapted as ``lora`` says."""
        model = self._load(AutoModelForCausalLM, self._path())
        return LanguageModel(self._adapt(model, "CAUSAL_LM"), self._tokenizer(self._path()))

    def scalar_model(self, path: str | None = None) -> ScalarModel:
        """A one-label sequence classifier from the checkpoint at ``path`` (a language model's or a classifier's)."""
        start = path or self._path()
        tokenizer = self._tokenizer(start)
        with quiet():  # a language model's checkpoint lacks the new head, and transformers says so at length
            model = self._load(AutoModelForSequenceClassification, start, num_labels=1)
        # The stock forward reads the score at the last token that is not padding: an end token must not count as such.
        same = tokenizer.pad_token_id == tokenizer.eos_token_id
        model.config.pad_token_id = None if same else tokenizer.pad_token_id
        return ScalarModel(self._adapt(model, "SEQ_CLS"), tokenizer)

    def _path(self) -> str:
        if self.path is None:
            raise UserError("policy.path: null, expected a checkpoint folder, e.g. policy.path=runs/…/sft/result")
        return self.path

    def _load(self, loader: Any, path: str, **options: Any) -> nn.Module:
        dtype = dtype_of(self.dtype, "policy.dtype")
        try:
            model: nn.Module = loader.from_pretrained(
                path, dtype=dtype, trust_remote_code=self.trust_remote_code, **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(missing(path, error)) from error
        return model

    def _tokenizer(self, path: str) -> Any:
        try:
            return AutoTokenizer.from_pretrained(path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(missing(path, error)) from error

    def _adapt(self, model: nn.Module, task: str) -> nn.Module:
        if not self.lora.rank:
            if self.dtype != "float32":
                raise UserError(
                    f"policy.dtype: {self.dtype} weights would round small updates away; "
                    "set policy.lora.rank (adapters are float32), or policy.dtype=float32"
                )
            return model
        from peft import LoraConfig, get_peft_model  # half a second that only LoRA needs

        config = LoraConfig(task_type=task, r=self.lora.rank, lora_alpha=self.lora.alpha, target_modules="all-linear")
        with warnings.catch_warnings():  # of a property transformers renamed, and a layout that peft puts right itself
            warnings.filterwarnings("ignore", message=".*(is_gradient_checkpointing|fan_in_fan_out)")
            return get_peft_model(model, config)


def dtype_of(name: str, key: str) -> torch.dtype:
    """The dtype of weights that the setting ``key`` names."""
    if name not in DTYPES:
        raise UserError(f"{key}: got {name!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors from transformers' log."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def missing(path: str, error: Exception) -> str:
    """What to say where no checkpoint can be read."""
    reason = str(error).strip().splitlines()[0]
    if not Path(path).exists():
        reason = "there is no such folder, and no model of that name could be reached"
    elif (Path(path) / "result").exists():
        reason = f"that is a run folder; the checkpoint is {Path(path) / 'result'}"
    return f"policy.path: cannot load {path!r}: {reason}"
