"""What an implementation may offer: the functions that the checks call, and what they take and return.

B sequences, T slots each (padded), V vocabulary, P prompts, K responses to one of them.

An implementation is any object or module with some of these functions as attributes; the names of arguments count,
their order does not. Log-probs are in nats. ``mask`` is True where a token counts, and may have gaps. What masked slots
of an input hold, NaN included, must not reach any result; what masked slots of an output hold is not looked at.
Floating inputs are float64 unless a check is about another dtype; results may be narrower.

An option (an argument with a default) is passed only by the checks that are about it. A function that does not take an
option, or raises ``NotImplementedError``, does not offer it. So says ``unsupported`` too, a set of "function",
"function.argument" or "function.argument=value" on the object. There, ``float32 = True`` asks for inputs in float32
where a check is not about another dtype, and ``device = "cuda"`` for inputs that lie there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Protocol

from torch import Tensor


class Gae(Protocol):
    """Generalised advantages, raw (not whitened)."""

    def __call__(
        self,
        *,
        rewards: Tensor,
        values: Tensor,
        mask: Tensor,
        gamma: float,
        lam: float,
        bootstrap: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns, ``[B,T]`` both.

        Args:
            rewards: ``[B,T]`` a token's own.
            values: ``[B,T]`` V of the state in which each token was chosen.
            mask: ``[B,T]`` bool; what lies in a gap is skipped, V and A are carried across it.
            gamma: discount γ.
            lam: λ.
            bootstrap: ``[B]`` V after the last valid token of a truncated row; 0 where not given.
            scores: ``[B]`` added to the reward of each row's last valid token.
        """
        ...


class Whiten(Protocol):
    """(x − mean)/std over all valid slots together."""

    def __call__(self, *, values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        """``[B,T]``; with ``shift_mean=False`` the mean is added again."""
        ...


class Kl(Protocol):
    """Estimates of KL(π‖π_ref) from tokens sampled from π."""

    def __call__(self, *, logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
        """``[B,T]`` nats, not aggregated; ``kind`` is k1, k2 or k3. The gradient flows into ``logprobs``."""
        ...


class PolicyLoss(Protocol):
    """The clipped policy loss, to be minimised."""

    def __call__(
        self,
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip_low: float,
        clip_high: float,
        dual_clip: float | None = None,
        level: str = "token",
        kind: str = "clip",
        aggregate: str = "token",
        denominator: float | None = None,
    ) -> Tensor:
        """Scalar; the gradient flows into ``logprobs``.

        Args:
            logprobs: ``[B,T]`` of the policy being trained.
            old_logprobs: ``[B,T]`` of the policy that sampled.
            advantages: ``[B,T]``.
            mask: ``[B,T]`` bool.
            clip_low: the ratio is clipped at 1 − this; 1 is no lower bound.
            clip_high: the ratio is clipped at 1 + this.
            dual_clip: c: with a negative advantage the objective is at least c·A.
            level: token, or sequence for one ratio a row, e^(mean log-ratio of its valid tokens) (GSPO).
            kind: clip for min(ρA, clip(ρ)A); cispo for sg(clip(ρ))·A·log π.
            aggregate: token (mean over valid tokens), sequence (mean over rows that have one of the mean over their
                valid tokens), constant (sum over ``denominator``).
            denominator: the number of valid tokens, or of rows that have one, of the global batch, of which this call
                has a part; what calls return adds up.
        """
        ...


class ValueLoss(Protocol):
    """The critic's loss."""

    def __call__(
        self, *, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None
    ) -> Tensor:
        """Scalar: mean over valid tokens of ½·max((V−R)², (clamp(V, V_old ± clip)−R)²); all tensors are ``[B,T]``.

        With ``clip=None`` only the first term is there. The gradient flows into ``values``.
        """
        ...


class RankingLoss(Protocol):
    """The reward model's loss."""

    def __call__(self, *, scores: list[Tensor], ranks: list[Tensor]) -> Tensor:
        """Scalar; the gradient flows into ``scores``.

        Mean over prompts that have an untied pair of the mean over their untied pairs of −log σ(better − worse).

        Args:
            scores: a ``[K]`` for each prompt, K may differ.
            ranks: a ``[K]`` int64 each; smaller is better, equal is a tie.
        """
        ...


class PreferenceLoss(Protocol):
    """The DPO family: mean over B pairs."""

    def __call__(
        self,
        *,
        chosen: Tensor,
        rejected: Tensor,
        chosen_mask: Tensor,
        rejected_mask: Tensor,
        beta: float,
        kind: str = "dpo",
        ref_chosen: Tensor | None = None,
        ref_rejected: Tensor | None = None,
        label_smoothing: float = 0.0,
        margin: float = 0.0,
    ) -> Tensor:
        """Scalar; the gradient flows into ``chosen`` and ``rejected``.

        Args:
            chosen: ``[B,T]`` log-probs of the preferred response's tokens.
            rejected: ``[B,T]`` of the other's.
            chosen_mask: ``[B,T]`` bool, the response's tokens (not the prompt's).
            rejected_mask: ``[B,T]`` bool.
            beta: β.
            kind: dpo, hinge, ipo (log-probs averaged by length), orpo, simpo.
            ref_chosen: ``[B,T]`` of the reference policy; not given with orpo and simpo, nor reference-free.
            ref_rejected: ``[B,T]``.
            label_smoothing: ε of dpo.
            margin: γ of simpo: −log σ(β·(mean log-prob of chosen − of rejected) − γ).
        """
        ...


class GroupAdvantages(Protocol):
    """Advantages relative to the other responses to the same prompt."""

    def __call__(self, *, scores: Tensor, group: int, kind: str = "grpo") -> Tensor:
        """``[B]`` from ``[B]`` scores, groups of ``group`` neighbours.

        ``kind`` is grpo, (s − mean)/std, or rloo, s less the mean of the others; both are 0 in a group of one.
        """
        ...


class Logprobs(Protocol):
    """Log-probs of given tokens."""

    def __call__(self, *, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """``[B,T]`` from ``[B,T,V]`` logits and ``[B,T]`` int64 targets; 0 where the target is −100."""
        ...


SIGNATURES: dict[str, type] = {
    "gae": Gae,
    "whiten": Whiten,
    "kl": Kl,
    "policy_loss": PolicyLoss,
    "value_loss": ValueLoss,
    "ranking_loss": RankingLoss,
    "preference_loss": PreferenceLoss,
    "group_advantages": GroupAdvantages,
    "logprobs": Logprobs,
}


@dataclass(frozen=True)
class Implementation:
    """Something under test.

    Attributes:
        name: of its column.
        version: of the distribution it comes from, as far as known.
        functions: what it offers, by the names of ``SIGNATURES``.
        calls: what of it a function calls, and with which of its options; for those who doubt a result.
        unsupported: "function", "function.argument" or "function.argument=value".
        float32: it takes no float64: inputs are narrowed, with a tolerance to match.
        device: where its inputs lie.
    """

    name: str
    functions: Mapping[str, Callable[..., Any]]
    version: str = ""
    calls: Mapping[str, str] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()
    float32: bool = False
    device: str = "cpu"

    def why_not(self, function: str, arguments: Mapping[str, Any]) -> str | None:
        """Why it does not offer a call with these arguments, or None."""
        call = self.functions.get(function)
        if call is None or function in self.unsupported:
            return f"no {function}"
        takes = _taken(call)
        for name in sorted(options(function) & set(arguments)):
            if takes is not None and name not in takes:
                return f"{function} takes no {name}"
        for name, value in arguments.items():
            for refused in (f"{function}.{name}", f"{function}.{name}={value}"):
                if refused in self.unsupported:
                    return f"{refused} is not supported"
        return None


def _taken(call: Callable[..., Any]) -> set[str] | None:
    """The arguments a function takes; None where it takes any, or does not say."""
    try:
        parameters = signature(call).parameters
    except ValueError:  # compiled ones may have no signature
        return None
    anything = any(taken.kind is Parameter.VAR_KEYWORD for taken in parameters.values())
    return None if anything else set(parameters)


def options(function: str) -> set[str]:
    """The arguments of a function that have a default."""
    parameters = signature(SIGNATURES[function].__call__).parameters
    return {name for name, taken in parameters.items() if taken.default is not Parameter.empty}
