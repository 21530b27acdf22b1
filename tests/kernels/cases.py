"""Calls of every op with every option: ragged, with masks, as numbers and as tensors; and how to run and compare them.

An op's options are a table, ``OPTIONS[op]``; a call is a choice of each, the lengths of the sequences, and a seed.
``covering(op)`` lists choices in which every pair of options occurs; ``choices(op)`` draws any. Tensors are float32:
cast to float64 they are what the definition is evaluated on, so nothing but the arithmetic differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.batch import offsets

Choice = dict[str, Any]

MASKS = (None, "some", "few", "none", "a sequence without")
KL = (None, ("k1", 0.1), ("k2", 0.1), ("k3", 0.1), ("k3", 0.0))
POLICY: dict[str, tuple[Any, ...]] = {
    "mask": MASKS,
    "ratios": ("near", "one", "far"),
    "clip": ((0.2, 0.2), (0.1, 0.3), (1.0, 0.0)),
    "dual_clip": (None, 1.5),
    "whiten": (None, "numbers", "tensors", "wide tensors"),
    "shift_mean": (True, False),
    "entropy": (None, 0.01, 0.0),
    "kl": KL,
    "importance": (False, True),
    "aggregate": ("token", "sequence", "constant"),
    "denominator": (None, 7.0, "tensor", "integer tensor"),
    "upstream": (1.0, -1.5),
}
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "shaped_gae": {
        "mask": MASKS,
        "rewards": (False, True),
        "kl": KL,
        "score_clip": (None, 0.5),
        "bootstrap": (False, True),
        "gamma": (1.0, 0.9, 0.0),
        "lam": (0.95, 1.0, 0.0),
    },
    "ppo_loss": POLICY | {"values": (None, 0.2, "without a clip", "without old values"), "value_coef": (0.5, 0.0)},
    "grpo_loss": POLICY | {"kind": ("grpo", "cispo", "dr_grpo"), "level": ("token", "sequence")},
    "ranking_loss": {
        "ranks": ("ties", "distinct", "all tied", "numbers"),
        "margin": (None, 0.3, "ratings"),
        "center_coef": (0.0, 0.05),
        "equal scores": (False, True),
        "denominator": (None, 3.0, "tensor", "integer tensor"),
        "upstream": (1.0, -1.5),
    },
    "preference_loss": {
        "kind": ("dpo", "hinge", "ipo", "kto", "orpo", "simpo"),
        "reference": (False, True),
        "beta": (0.1, 2.0),
        "label_smoothing": (0.0, 0.1),
        "margin": (0.0, 0.5),
        "lengths": (False, True),
        "scale": (1.0, 30.0),
        "denominator": (None, 3.0, "tensor", "integer tensor"),
        "upstream": (1.0, -1.5),
    },
}
LEARNT = ("logprobs", "values", "entropy", "scores", "chosen", "rejected")


@cache
def covering(op: str) -> tuple[Choice, ...]:
    """Choices in which every pair of two options' values occurs, found greedily."""
    table = OPTIONS[op]
    missing = {((a, x), (b, y)) for a, b in combinations(table, 2) for x, y in product(table[a], table[b])}
    random, found = torch.Generator().manual_seed(0), []
    while missing:
        tries = [{name: values[_index(random, len(values))] for name, values in table.items()} for _ in range(60)]
        best = max(tries, key=lambda choice: len(missing & _pairs(choice)))
        if not missing & _pairs(best):
            best |= dict(min(missing, key=str))
        missing -= _pairs(best)
        found.append(best)
    return tuple(found)


def _index(random: torch.Generator, size: int) -> int:
    return int(torch.randint(size, (), generator=random))


def _pairs(choice: Choice) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(combinations(choice.items(), 2))


def choices(op: str) -> st.SearchStrategy[Choice]:
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS[op].items()})


@dataclass
class Case:
    """A call of an op. ``arguments`` are what it is called with; the gradient of the loss comes times ``upstream``."""

    op: str
    arguments: dict[str, Any]
    upstream: float = 1.0

    def to(self, dtype: torch.dtype) -> "Case":
        """With every floating tensor of a token, pair or sequence in ``dtype``."""

        def cast(name: str, x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() and x.dim() > 0 and name != "ranks" else x

        return self.changed(cast)

    def on(self, device: str) -> "Case":
        return self.changed(lambda _, x: x.to(device))

    def changed(self, change: Callable[[str, Tensor], Tensor]) -> "Case":
        """With another tensor for each one, by its name."""

        def of(name: str, value: Any) -> Any:
            if isinstance(value, tuple):  # whiten
                return tuple(of(name, part) for part in value)
            return change(name, value) if isinstance(value, Tensor) else value

        return Case(self.op, {name: of(name, value) for name, value in self.arguments.items()}, self.upstream)

    def run(self, backend: str | None) -> dict[str, Tensor]:
        """Everything the op gives, by name, and the gradient of each input that has one."""
        learnt = {n: self.arguments[n].detach().requires_grad_() for n in LEARNT if self.arguments.get(n) is not None}
        if self.op == "shaped_gae":
            return kernels.shaped_gae(**self.arguments, backend=backend)._asdict()
        loss, rest = getattr(kernels, self.op)(**self.arguments | learnt, backend=backend)
        metrics = rest if isinstance(rest, dict) else {"accuracy": rest}
        if not loss.requires_grad:  # the definition, where nothing of an input is used
            gradients = [torch.zeros_like(x) for x in learnt.values()]
        else:
            upstream = torch.full_like(loss, self.upstream)
            gradients = torch.autograd.grad(loss, list(learnt.values()), upstream, materialize_grads=True)
        return {"loss": loss.detach()} | metrics | {f"d_{n}": g for n, g in zip(learnt, gradients, strict=True)}


class Draw:
    """Random float32 numbers of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def normal(self, size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=self.random)

    def mask(self, how: str, lengths: Sequence[int]) -> Tensor:
        chance = {"some": 0.7, "few": 0.1, "none": 0.0, "a sequence without": 0.8}[how]
        mask = torch.rand(sum(lengths), generator=self.random) < chance
        if how == "a sequence without" and lengths:
            mask[: lengths[0]] = False
        return mask


def build(op: str, choice: Choice, lengths: Sequence[int], seed: int = 0) -> Case:
    """The call that a choice stands for; an option that another one excludes is left out."""
    return _BUILDERS[op](op, choice, list(lengths), Draw(seed))


def _number(how: Any) -> Any:
    tensors = {"tensor": torch.tensor(5.5), "integer tensor": torch.tensor(6)}
    return tensors.get(how, how)


def _gae(op: str, choice: Choice, lengths: list[int], draw: Draw) -> Case:
    tokens, names = sum(lengths), ("score_clip", "gamma", "lam")
    call: Choice = {name: choice[name] for name in names} | {"cu_seqlens": offsets(lengths)}
    call |= {"scores": draw.normal(len(lengths)), "values": draw.normal(tokens)}
    if choice["mask"]:
        call["mask"] = draw.mask(choice["mask"], lengths)
    if choice["rewards"]:
        call["rewards"] = draw.normal(tokens, 0.3)
    if choice["bootstrap"]:
        call["bootstrap"] = draw.normal(len(lengths))
    if choice["kl"]:
        call["kl_estimator"], call["kl_coef"] = choice["kl"]
        call["logprobs"] = -draw.normal(tokens).abs()
        call["ref_logprobs"] = call["logprobs"] + draw.normal(tokens, 0.3)
    return Case(op, call)


def _policy(op: str, choice: Choice, lengths: list[int], draw: Draw) -> Case:
    tokens = sum(lengths)
    call: Choice = {"cu_seqlens": offsets(lengths), "shift_mean": choice["shift_mean"]}
    call["logprobs"], call["advantages"] = -draw.normal(tokens).abs(), draw.normal(tokens)
    call["old_logprobs"] = call["logprobs"] + draw.normal(tokens, {"one": 0, "near": 0.3, "far": 20}[choice["ratios"]])
    call["clip_low"], call["clip_high"] = choice["clip"]
    if choice["mask"]:
        call["mask"] = draw.mask(choice["mask"], lengths)
    if choice["whiten"]:
        numbers = {"numbers": float, "tensors": torch.tensor, "wide tensors": lambda x: torch.tensor(x).double()}
        call["whiten"] = tuple(numbers[choice["whiten"]](x) for x in (0.3, 2.0))
    if choice["entropy"] is not None:
        call |= {"entropy": draw.normal(tokens).abs(), "entropy_coef": choice["entropy"]}
    if choice["kl"]:
        call["kl_estimator"], call["kl_coef"] = choice["kl"]
        call["ref_logprobs"] = call["logprobs"] + draw.normal(tokens, 0.3)
    if choice["importance"]:
        call["importance"] = draw.normal(tokens, 0.3).exp()
    if choice.get("kind") != "cispo":
        call["dual_clip"] = choice["dual_clip"]
    if op == "grpo_loss":
        call |= {"kind": choice["kind"], "level": choice["level"]}
    elif choice["values"] is not None:
        call |= {name: draw.normal(tokens) for name in ("values", "old_values", "returns")}
        call |= {"value_coef": choice["value_coef"], "value_clip": 0.2 if choice["values"] == 0.2 else None}
        if choice["values"] == "without old values":
            del call["old_values"]
    call["aggregate"] = "constant" if choice.get("kind") == "dr_grpo" else choice["aggregate"]
    call["denominator"] = _number(choice["denominator"])
    if call["aggregate"] == "constant" and call["denominator"] is None:
        call["denominator"] = 9.0
    return Case(op, call, choice["upstream"])


def _ranking(op: str, choice: Choice, lengths: list[int], draw: Draw) -> Case:
    scores, distinct = draw.normal(sum(lengths)), torch.randperm(sum(lengths), generator=draw.random)
    ranks = {"ties": distinct % 4, "distinct": distinct, "all tied": distinct * 0, "numbers": (distinct % 5) / 2}
    call: Choice = {"ranks": ranks[choice["ranks"]], "cu_seqlens": offsets(lengths)}
    call["scores"] = (2 * scores).round() / 2 if choice["equal scores"] else scores
    call["margin"] = draw.normal(len(scores)) if choice["margin"] == "ratings" else choice["margin"]
    call |= {"center_coef": choice["center_coef"], "denominator": _number(choice["denominator"])}
    return Case(op, call, choice["upstream"])


def _preference(op: str, choice: Choice, lengths: list[int], draw: Draw) -> Case:
    """B is the sum of the lengths; log-probs stay away from 0, where orpo's odds depend on the dtype."""
    pairs, kind, scale = sum(lengths), choice["kind"], choice["scale"]
    call: Choice = {"kind": kind, "beta": choice["beta"], "denominator": _number(choice["denominator"])}
    call |= {name: -draw.normal(pairs, scale).abs() - 0.01 for name in ("chosen", "rejected")}
    if choice["reference"] and kind not in ("orpo", "simpo"):
        call |= {f"ref_{name}": call[name] + draw.normal(pairs, scale / 3) for name in ("chosen", "rejected")}
    if choice["lengths"] and kind in ("ipo", "orpo", "simpo"):
        call |= {f"{n}_lengths": torch.randint(0, 9, (pairs,), generator=draw.random) for n in ("chosen", "rejected")}
    if kind in ("dpo", "simpo"):
        call["label_smoothing"] = choice["label_smoothing"]
    if kind == "simpo":
        call["margin"] = choice["margin"]
    return Case(op, call, choice["upstream"])


_BUILDERS = {
    "shaped_gae": _gae,
    "ppo_loss": _policy,
    "grpo_loss": _policy,
    "ranking_loss": _ranking,
    "preference_loss": _preference,
}


def compare(found: dict[str, Tensor], single: dict[str, Tensor], exact: dict[str, Tensor], small: float = 1e-6) -> None:
    """``max|found − exact| ≤ 2·max|single − exact| + small·scale``, for every output.

    Args:
        found: by the backend that is tested.
        single: by the definition in the same dtype.
        exact: by the definition in float64.
        small: of the largest number of an output, and of 1 where it is a loss or metric, whose terms may cancel.
    """
    assert found.keys() == exact.keys()
    for name, wanted in exact.items():
        assert found[name].shape == wanted.shape and found[name].dtype == single[name].dtype, name
        error, usual = (_largest(side[name].double() - wanted) for side in (found, single))
        scale = max(_largest(wanted), 0.0 if name.startswith("d_") else 1.0)
        assert error <= 2 * usual + small * scale, f"{name}: off by {error:.3g}, the definition by {usual:.3g}"


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0
