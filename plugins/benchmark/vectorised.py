"""The best plain PyTorch we can write, and torch.compile of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_core.bench.case import Case

from . import vectorised_attention, vectorised_gae, vectorised_logprobs, vectorised_pairs, vectorised_policy

Function = Callable[..., dict[str, Tensor]]
Run = Callable[[], dict[str, Tensor]]

PREPARE: dict[str, Callable[[Case, Callable[[Function], Function]], Run]] = {
    "shaped_gae": vectorised_gae.prepare,
    "ppo_loss": vectorised_policy.prepare_ppo,
    "grpo_loss": vectorised_policy.prepare_grpo,
    "ranking_loss": vectorised_pairs.prepare_ranking,
    "preference_loss": vectorised_pairs.prepare_preference,
    "token_logprobs": vectorised_logprobs.prepare_token_logprobs,
    "token_logprobs_entropy": vectorised_logprobs.prepare_token_logprobs_entropy,
    "logprobs_from_logits": vectorised_logprobs.prepare_from_logits,
    "linear_policy_loss": vectorised_logprobs.prepare_policy_loss,
    "attention": vectorised_attention.prepare_attention,
    "attention_shared": vectorised_attention.prepare_attention,
    "decode_attention": vectorised_attention.prepare_decode,
    "decode_attention_shared": vectorised_attention.prepare_decode_shared,
}

ONE_OP = ("attention", "attention_shared")


@dataclass
class Vectorised:
    """No loop over tokens, no kernel of our own; each op's file says what else was tried."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "baseline"
    ops: ClassVar[tuple[str, ...]] = tuple(PREPARE)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """It runs anywhere."""
        return None

    def prepare(self, op: str, case: Case) -> Run:
        """As it is."""
        return PREPARE[op](case, lambda function: function)


@dataclass
class Compile:
    """torch.compile of ``vectorised``, for one static shape; the first call is compiled, which its column shows."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[str] = "baseline"
    ops: ClassVar[tuple[str, ...]] = tuple(PREPARE)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Inductor needs a compiler: C++ for a CPU, Triton for a GPU; and ops that it can fuse."""
        if op in ONE_OP:
            return "scaled_dot_product_attention is one op: there is nothing to fuse"
        return _no_compiler(device.type)

    def prepare(self, op: str, case: Case) -> Run:
        """Compiled with the first call."""
        return PREPARE[op](case, _compiled)


def _compiled(function: Function) -> Function:
    # A shape is a compilation: a run over many shapes must not end in the interpreter.
    torch._dynamo.config.recompile_limit = 256
    return _compile_once(function)


@cache
def _compile_once(function: Function) -> Function:
    return torch.compile(function, fullgraph=True, dynamic=False)


@cache
def _no_compiler(device: str) -> str | None:
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # imports the compiler: a second

        try:
            get_cpp_compiler()
        except Exception as error:  # inductor's own exception types move from release to release
            return f"no C++ compiler ({type(error).__name__})"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else "Triton is not installed"
