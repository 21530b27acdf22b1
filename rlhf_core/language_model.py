"""A transformers causal LM with its tokenizer, called on packed rows.

N packed tokens, H hidden size, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import kernels
from .attention import NAME
from .batch import Packed, following
from .errors import UserError
from .kernels.logprobs import IGNORED
from .kernels.native.linear import compiled_for, few_rows, sample_rows
from .precision import computing


def unadapted(model: Any) -> Any:
    """The transformers model itself, without a peft wrapper (its layers keep their adapters)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: nn.Module, packed: Packed) -> Tensor:
    """``[M, H]`` last hidden states of the folded row, by our attention; any transformers model with a decoder.

    In the dtype that ``precision.py`` computes in.
    """
    with computing(model) as dtype:
        hidden = _states(model, packed)
    return hidden if dtype is None else hidden.to(dtype)


def _states(model: nn.Module, packed: Packed) -> Tensor:
    decoder: Any = unadapted(model).base_model
    row = packed.folded
    output = decoder(
        input_ids=row.tokens[None],
        position_ids=row.positions[None],
        cu_seqlens=row.cu_seqlens,
        responses_per_prompt=row.responses_per_prompt,
        use_cache=False,
    )
    return cast(Tensor, output.last_hidden_state[0])


def run_packed(model: nn.Module) -> None:
    """Put our attention into a model, and refuse one that does not then compute what it computed before.

    Some architectures do not go through transformers' ``AttentionInterface``, or count no positions: packed rows would
    attend across sequences without a word. Two short sequences, apart and packed, tell.
    """
    base = unadapted(model)
    if base.config._attn_implementation == NAME:
        return
    name, training = type(base).__name__, base.training
    device = next(base.parameters()).device
    padding = base.config.pad_token_id  # left out: transformers warns of it
    known = [token for token in range(min(9, base.config.vocab_size)) if token != padding]
    tokens = torch.tensor(list(islice(cycle(known), 8)), device=device)
    base.eval()
    try:
        with torch.no_grad():
            rows = {"input_ids": tokens.view(2, 4), "attention_mask": torch.ones_like(tokens).view(2, 4)}
            apart = base.base_model(**rows, use_cache=False).last_hidden_state.flatten(0, 1)
            base.set_attn_implementation(NAME)
            packed = _states(model, Packed(tokens, torch.tensor([0, 4, 8], dtype=torch.int32, device=device)))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"policy: {name} cannot run packed sequences ({str(error).splitlines()[0]})") from error
    finally:
        base.train(training)
    if base.config._attn_implementation != NAME:
        raise UserError(
            f"policy: {name} does not go through AttentionInterface, so packed sequences would see each other"
        )
    allowed = 1e-3 if apart.dtype in (torch.float32, torch.float64) else 5e-2
    if (apart - packed).abs().max() > allowed * apart.abs().max():
        raise UserError(
            f"policy: {name} gives other results for packed sequences; take a model of another architecture"
        )


def reached(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """``[B]`` int64 columns at which the running sum of ``[B, V]`` probabilities passes ``[B]`` shares of the whole."""
    sums = probabilities.double().cumsum(1)
    shares = uniform.to(sums.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, shares, right=True).clamp(max=sums.shape[1] - 1)[:, 0]


@dataclass
class LanguageModel:
    """The model (a ``PreTrainedModel``, or one wrapped by peft) and its tokenizer."""

    model: nn.Module
    tokenizer: Any

    def __post_init__(self) -> None:
        """Put our attention in, and refuse what packed log-probs would get wrong."""
        run_packed(self.model)
        base = unadapted(self.model)
        for option in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(base.config, option, None) not in (None, 1, 1.0):
                raise UserError(f"policy: models with {option} are not supported yet ({base.config.model_type})")
        if self.tokenizer.eos_token_id is None:
            raise UserError("policy: the tokenizer has no end token (eos_token); responses could never end")

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.model.parameters()).device

    @property
    def end(self) -> int:
        """The token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def logprobs(self, packed: Packed, temperature: float = 1.0) -> Tensor:
        """``[N]`` float32 log-probabilities (nats) of the predicted tokens given those before; 0 elsewhere."""
        return self._predict(packed, temperature, entropy=False)[0]

    def logprobs_and_entropy(self, packed: Packed, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """``logprobs``, and the ``[N]`` float32 entropy (nats) of the distribution each token was drawn from."""
        logprobs, entropy = self._predict(packed, temperature, entropy=True)
        assert entropy is not None
        return logprobs, entropy

    def _predict(self, packed: Packed, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
        hidden, rows = hidden_states(self.model, packed), packed.folded.rows
        head = unadapted(self.model).get_output_embeddings()
        options: dict[str, Any] = {"bias": head.bias, "temperature": temperature, "entropy": entropy}
        weight = head.weight.to(hidden.dtype)
        targets = packed.targets
        if rows is None:
            found = kernels.token_logprobs(hidden, weight, targets, **options)
            logprobs, entropies = found if entropy else (found, None)
            return following(logprobs), None if entropies is None else following(entropies)
        # A prompt's last state predicts the first token of each of its responses.
        sources = (targets != IGNORED).nonzero()[:, 0]
        found = kernels.token_logprobs(hidden.index_select(0, rows[sources]), weight, targets[sources], **options)
        logprobs, entropies = found if entropy else (found, None)

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(len(targets)).index_put((sources + 1,), values)

        return placed(logprobs), None if entropies is None else placed(entropies)

    def next_token(self, temperature: float, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
        """What gives the ``[B, V]`` float32 log-probabilities of the next token after ``[B, H]`` hidden states.

        Numbers of ``dtype`` (None: the weights') are multiplied, as in training, and added up in float32: bfloat16
        logits would cost up to 4e-3 nats.
        """
        weight, bias = self._head(dtype)
        weight, bias = weight.float(), None if bias is None else bias.float()

        def distribution(hidden: Tensor) -> Tensor:
            hidden = hidden if dtype is None else hidden.to(dtype)
            with torch.autocast(hidden.device.type, enabled=False):
                logits = nn.functional.linear(hidden.float(), weight, bias)
            return torch.log_softmax(logits / temperature, dim=-1)

        return distribution

    def sampler(
        self, temperature: float, dtype: torch.dtype | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What draws the next tokens ``[B]`` after ``[B, H]`` hidden states, with their log-probs ``[B]``.

        By ``[B]`` float64 uniform numbers in [0, 1) on the CPU and the inverse of the distribution function.
        """
        weight, bias = self._head(dtype)
        if compiled_for(weight):
            return lambda hidden, uniform: sample_rows(hidden.to(weight.dtype), weight, bias, temperature, uniform)
        distribution = self.next_token(temperature, dtype)

        def draw(hidden: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            logprobs = distribution(hidden)
            tokens = reached(logprobs.exp(), uniform)
            return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

        return draw

    def _head(self, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        head = unadapted(self.model).get_output_embeddings()
        weight = head.weight.detach() if dtype is None else head.weight.detach().to(dtype)
        return weight, None if head.bias is None else head.bias.detach()

    def fit(self, length: int, key: str) -> None:
        """Refuse sequences of ``length`` tokens if the model has fewer positions; ``key`` is the setting to lower."""
        limit = getattr(unadapted(self.model).config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise UserError(f"{key}: sequences of {length} tokens, but the model has {limit} positions; lower it")

    @contextmanager
    def decoding(self) -> Iterator[torch.dtype | None]:
        """``evaluating``, with linear layers made for few rows, in the model's precision, which is given."""
        with self.evaluating(), torch.inference_mode(), computing(self.model) as dtype, few_rows(self.model, dtype):
            yield dtype

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off and no gradients, as rollouts and evaluation want it."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def frozen(self) -> "LanguageModel":
        """The reference policy: this model as it is now, in eval mode, never trained; under LoRA the base model."""
        if hasattr(self.model, "disable_adapter"):
            return WithoutAdapter(self.model, self.tokenizer)
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        return LanguageModel(model, self.tokenizer)

    def save(self, folder: Path) -> None:
        """A plain transformers checkpoint: adapters merged, safetensors, the tokenizer beside it."""
        model: Any = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class WithoutAdapter(LanguageModel):
    """A LoRA model with its adapters off, and dropout with them: the reference costs no second copy."""

    def _predict(self, packed: Packed, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
        with self.evaluating(), cast(Any, self.model).disable_adapter():
            return super()._predict(packed, temperature, entropy)
