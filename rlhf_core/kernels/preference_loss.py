"""Losses on pairs of a preferred and a dispreferred response, without a reward model.

B pairs; c, r the summed log-probs of the chosen and the rejected response, ref their reference's, |·| its tokens.

    h = β·((c − ref_c) − (r − ref_r))                     reference-free: ref = 0
    dpo    −(1−ε)·log σ(h) − ε·log σ(−h)                  ε = label_smoothing             arXiv:2305.18290
    hinge  max(0, 1 − h)                                                                  arXiv:2305.10425
    ipo    (h/β − 1/(2β))²  with log-probs a token (÷ |·|)                                arXiv:2310.12036
    kto    ½·[(1 − σ(β·(c − ref_c − z_r))) + (1 − σ(β·(z_c − (r − ref_r))))]              arXiv:2402.01306, paired
           z = max(0, batch mean of π − ref), of the other side, without gradient
    orpo   −c/|c| − β·log σ(log odds c/|c| − log odds r/|r|),  odds p = p/(1−p)           arXiv:2403.07691
    simpo  −(1−ε)·log σ(g) − ε·log σ(−g),  g = β·(c/|c| − r/|r|) − margin                 arXiv:2405.14734
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .dispatch import Op
from .policy_loss import Metrics

KINDS = ("dpo", "hinge", "ipo", "kto", "orpo", "simpo")
REFERENCE_FREE = ("orpo", "simpo")
PER_TOKEN = ("ipo", "orpo", "simpo")
SMOOTHED = ("dpo", "simpo")
METRICS = ("chosen_reward", "rejected_reward", "reward_margin", "accuracy")


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None = None,
    ref_rejected: Tensor | None = None,
    *,
    beta: float,
    kind: str = "dpo",
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    denominator: "float | Tensor | None" = None,
    backend: str | None = None,
) -> tuple[Tensor, Metrics]:
    """Mean preference loss of B pairs; the gradient reaches ``chosen`` and ``rejected``.

    Args:
        chosen: ``[B]`` nats, log-prob of the preferred response summed over its tokens (not the prompt's).
        rejected: ``[B]`` the same of the other.
        ref_chosen: ``[B]`` of the reference policy; None, with ``ref_rejected``, is reference-free.
        ref_rejected: ``[B]``.
        beta: β > 0.
        kind: dpo, hinge, ipo, kto, orpo or simpo. orpo and simpo know no reference.
        label_smoothing: ε, the share of labels taken to be wrong, 0 ≤ ε < ½; dpo and simpo only.
        margin: simpo's.
        chosen_lengths: ``[B]`` tokens of each response, for ipo, orpo and simpo; without them their log-probs have to
            come divided already.
        rejected_lengths: ``[B]``.
        denominator: the global number of pairs, so that losses of microbatches add up (kto's z stays the batch's own).
        backend: eager, cpu, triton, cuda, or None for the configured choice.

    Returns:
        Scalar loss, float32 (float64 where an input is), and detached means over the pairs: ``chosen_reward`` and
        ``rejected_reward`` (β·(π − ref)), ``reward_margin``, ``accuracy`` (½ where equal).

    Raises:
        ValueError: a wrong shape, dtype, device or option, named.
    """
    checks.one_of(kind, "kind", KINDS)
    checks.floating(chosen, "chosen", (-1,))
    others = {"rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    for name, tensor in others.items():
        checks.floating(tensor, name, (len(chosen),), chosen)
    for name, tensor in {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}.items():
        checks.shaped(tensor, name, (len(chosen),), chosen)
        checks.expect(tensor is None or kind in PER_TOKEN, name, f"None with kind={kind!r}", "a tensor")
        checks.expect(tensor is None or not tensor.is_complex(), name, "numbers of tokens", "complex ones")
    together = (ref_chosen is None) == (ref_rejected is None)
    checks.expect(together, "ref_rejected", "ref_chosen and ref_rejected together", "one of them")
    free = kind not in REFERENCE_FREE or ref_chosen is None
    checks.expect(free, "ref_chosen", f"None with kind={kind!r}", "a tensor")
    together = (chosen_lengths is None) == (rejected_lengths is None)
    checks.expect(together, "rejected_lengths", "both lengths together", "one of them")
    checks.expect(beta > 0, "beta", "a number > 0", beta)
    checks.expect(0 <= label_smoothing < 0.5, "label_smoothing", "0 ≤ a number < 0.5", label_smoothing)
    smooth = label_smoothing == 0 or kind in SMOOTHED
    checks.expect(smooth, "label_smoothing", f"0 with kind={kind!r}", label_smoothing)
    checks.expect(margin == 0 or kind == "simpo", "margin", f"0 with kind={kind!r}", margin)
    checks.number(denominator, "denominator", positive=True)
    return OP(
        backend, chosen, chosen, rejected, ref_chosen, ref_rejected, beta, kind, label_smoothing, margin,
        chosen_lengths, rejected_lengths, denominator,
    )  # fmt: skip


def _eager(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    beta: float,
    kind: str,
    label_smoothing: float,
    margin: float,
    chosen_lengths: Tensor | None,
    rejected_lengths: Tensor | None,
    denominator: "float | Tensor | None",
) -> tuple[Tensor, Metrics]:
    """The definition."""
    dtype = checks.statistics_dtype(chosen, rejected, ref_chosen, ref_rejected)

    def against(own: Tensor, reference: Tensor | None, lengths: Tensor | None) -> Tensor:
        ratio = own.to(dtype) if reference is None else own.to(dtype) - reference.detach().to(dtype)
        return ratio if lengths is None else ratio / lengths.to(dtype).clamp(min=1)

    c, r = against(chosen, ref_chosen, chosen_lengths), against(rejected, ref_rejected, rejected_lengths)
    count = max(len(chosen), 1) if denominator is None else denominator
    loss = _terms(c, r, beta, kind, label_smoothing, margin).sum() / count
    right = (c > r).to(dtype) + 0.5 * (c == r).to(dtype)
    means = zip(METRICS, (beta * c, beta * r, beta * (c - r), right), strict=True)
    return loss, {name: terms.detach().sum() / count for name, terms in means}


def _terms(c: Tensor, r: Tensor, beta: float, kind: str, smoothing: float, margin: float) -> Tensor:
    """``[B]`` losses of log-ratios."""
    h = beta * (c - r) - margin
    if kind == "hinge":
        return (1 - h).relu()
    if kind == "ipo":
        return (c - r - 1 / (2 * beta)).square()
    if kind == "kto":
        z_c, z_r = (x.detach().sum().div(max(len(x), 1)).clamp(min=0) for x in (c, r))
        return (torch.sigmoid(-beta * (c - z_r)) + torch.sigmoid(-beta * (z_c - r))) / 2
    if kind == "orpo":
        return -c - beta * F.logsigmoid(_log_odds(c) - _log_odds(r))
    return -(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h)


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p/(1−p)) of log p; expm1 keeps 1 − p where p is near 1, the clamp keeps it from being 0."""
    below = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return below - torch.log(-torch.expm1(below))


OP = Op("preference_loss", _eager)
