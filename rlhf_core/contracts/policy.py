"""A policy: the language model being trained, its tokenizer, and how it is adapted."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .data import Data

if TYPE_CHECKING:
    from ..language_model import LanguageModel
    from ..scalar_model import ScalarModel


@runtime_checkable
class Policy(Protocol):
    """Makes the models of a run; parameters with ``requires_grad`` are trained."""

    def language_model(self, data: Data) -> "LanguageModel":
        """The policy itself; ``data`` is there for a tokenizer that is learned from it."""

    def scalar_model(self, path: str | None = None) -> "ScalarModel":
        """One number a token (reward model, critic), started from the checkpoint at ``path`` or the policy's own."""
