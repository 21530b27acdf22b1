"""Benchmarks that are right, and ones with a single fault each."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core.bench.case import Case
from rlhf_core.bench.ops import operations


def dpo(x: Any, beta: float) -> Tensor:
    margin = (x["chosen"] - x["ref_chosen"]) - (x["rejected"] - x["ref_rejected"])
    return -F.logsigmoid(beta * margin).mean()


@dataclass
class Right:
    """DPO in plain PyTorch, in float32 and wider."""

    rlhf_api: ClassVar[int] = 1
    kind: ClassVar[Any] = "peer"
    ops: ClassVar[Any] = ("preference_loss",)

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        return None if dtype in (torch.float32, torch.float64) else "takes float32 and float64"

    def prepare(self, op: str, case: Case) -> Any:
        x, beta = case.packed, case.number("beta")
        return lambda: {"loss": dpo(x, beta)}


@dataclass
class Peer(Right):
    """Right: on padded rectangles, with a metric of its own; every op has one number a token."""

    ops: ClassVar[Any] = ("ranking_loss", "logprobs_from_logits")

    def prepare(self, op: str, case: Case) -> Any:
        return self.logprobs(case) if op == "logprobs_from_logits" else self.ranking(case)

    def logprobs(self, case: Case) -> Any:
        x = case.packed

        def run() -> dict[str, Tensor]:
            every = x["logits"].float().log_softmax(-1)
            out = every.gather(-1, x["targets"].clamp(min=0)[:, None])[:, 0]
            entropy = -(every.exp() * every).sum(-1).detach()
            return {"out": out.where(x["targets"] >= 0, 0), "entropy": entropy.where(x["targets"] >= 0, 0)}

        return run

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        return None if dtype == torch.float32 else "takes float32"

    def ranking(self, case: Case) -> Any:
        x = case.padded
        places = torch.arange(x["scores"].shape[1])
        there = places < x["lengths"][:, None]

        def run() -> dict[str, Tensor]:
            pairs = (x["ranks"][:, :, None] < x["ranks"][:, None]) & there[:, :, None] & there[:, None]
            losses = -F.logsigmoid(x["scores"][:, :, None] - x["scores"][:, None])
            means = (losses * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
            return {"loss": means.sum() / pairs.any(2).any(1).sum(), "_seconds": torch.zeros(())}

        return run


@dataclass
class GPUAlone(Right):
    """Right: computes nothing here."""

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        return None if device.type == "cuda" else "needs a CUDA device"


RIGHT = [Right(), Peer(), GPUAlone()]


@dataclass
class NoComma(Right):
    """A tuple without its comma."""

    ops: ClassVar[Any] = "preference_loss"


@dataclass
class UnknownOp(Right):
    """A misspelt op beside a right one."""

    ops: ClassVar[Any] = ("preference_loss", "ppo_los")


@dataclass
class OwnKind(Right):
    """A kind of its own."""

    kind: ClassVar[Any] = "peers"


@dataclass
class AsksTheGPU(Right):
    """Asks a GPU that is not there."""

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
            return "needs compute capability 8"
        return super().why_not(op, device, dtype)


@dataclass
class SaysWhether(Right):
    """True where it can, as if it were asked whether."""

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        return dtype != torch.float32


@dataclass
class BlankReason(Right):
    """No reason."""

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        return "" if device.type == "cuda" else super().why_not(op, device, dtype)


@dataclass
class WholeTraceback(Right):
    """Lines of reasons."""

    def why_not(self, op: str, device: torch.device, dtype: torch.dtype) -> Any:
        return "Traceback:\n  not installed" if device.type == "cuda" else super().why_not(op, device, dtype)


@dataclass
class Computes(Right):
    """``loss`` of a case's inputs, for each call."""

    def prepare(self, op: str, case: Case) -> Any:
        return lambda: {"loss": self.loss(case)}

    def loss(self, case: Case) -> Any:
        return dpo(case.packed, case.number("beta"))


@dataclass
class GivesNoFunction(Right):
    """Prepares by computing."""

    def prepare(self, op: str, case: Case) -> Any:
        return {"loss": dpo(case.packed, case.number("beta"))}


@dataclass
class OneTensor(Computes):
    """The loss without its name."""

    def prepare(self, op: str, case: Case) -> Any:
        return lambda: self.loss(case)


@dataclass
class OtherName(Computes):
    """The loss by another name."""

    def prepare(self, op: str, case: Case) -> Any:
        return lambda: {"dpo_loss": self.loss(case)}


@dataclass
class OwnMetric(Computes):
    """A metric that is no output of the op."""

    def prepare(self, op: str, case: Case) -> Any:
        return lambda: {"loss": self.loss(case), "kl": torch.zeros(())}


class Items(Computes):
    """The loss is a number."""

    def loss(self, case: Case) -> Any:
        return float(super().loss(case))


class Crashes(Computes):
    """Needs what is not installed."""

    def loss(self, case: Case) -> Any:
        raise ImportError("no module named fast_dpo")


class Summed(Computes):
    """A sum where a mean belongs."""

    def loss(self, case: Case) -> Any:
        return super().loss(case) * len(case.packed["chosen"])


class NoReference(Computes):
    """Forgets the reference of the rejected."""

    def loss(self, case: Case) -> Any:
        x = dict(case.packed) | {"ref_rejected": torch.zeros_like(case.packed["ref_rejected"])}
        return dpo(x, case.number("beta"))


@dataclass
class SeesPadding(Peer):
    """Right for sequences of one length alone."""

    ops: ClassVar[Any] = ("ranking_loss",)

    def ranking(self, case: Case) -> Any:
        x = case.padded

        def run() -> dict[str, Tensor]:
            pairs = x["ranks"][:, :, None] < x["ranks"][:, None]
            losses = -F.logsigmoid(x["scores"][:, :, None] - x["scores"][:, None])
            return {"loss": ((losses * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).mean()}

        return run


class Detached(Computes):
    """From detached inputs."""

    def loss(self, case: Case) -> Any:
        return dpo({name: tensor.detach() for name, tensor in case.packed.items()}, case.number("beta"))


class NoGradient(Computes):
    """Under no_grad."""

    @torch.no_grad()
    def loss(self, case: Case) -> Any:
        return super().loss(case)


class HalfDetached(Computes):
    """The rejected get no gradient."""

    def loss(self, case: Case) -> Any:
        x = dict(case.packed) | {"rejected": case.packed["rejected"].detach()}
        return dpo(x, case.number("beta"))


class HalfTheGradient(Computes):
    """The right loss, with half of its gradient."""

    def loss(self, case: Case) -> Any:
        loss = super().loss(case)
        return loss.detach() / 2 + loss / 2


@dataclass
class Beforehand(Right):
    """Computes in prepare what has no gradient."""

    ops: ClassVar[Any] = ("decode_attention",)

    def prepare(self, op: str, case: Case) -> Any:
        found = operations()[op].outputs(case, "eager")
        return lambda: found


@dataclass
class GraphBeforehand(Right):
    """The graph is made in prepare, and is gone after the first backward."""

    def prepare(self, op: str, case: Case) -> Any:
        x, beta = case.packed, case.number("beta")
        margin = (x["chosen"] - x["ref_chosen"]) - (x["rejected"] - x["ref_rejected"])
        product = (beta * margin).exp().log()
        return lambda: {"loss": -F.logsigmoid(product).mean()}


@dataclass
class AddsUp(Right):
    """A buffer is not emptied."""

    def prepare(self, op: str, case: Case) -> Any:
        total = torch.zeros((), dtype=case.packed["chosen"].dtype)

        def run() -> dict[str, Tensor]:
            loss = dpo(case.packed, case.number("beta"))
            total.add_(loss.detach())
            return {"loss": loss - loss.detach() + total}

        return run


@dataclass
class OneCase(Right):
    """Keeps the inputs in self."""

    def prepare(self, op: str, case: Case) -> Any:
        self.case = case
        return lambda: {"loss": dpo(self.case.packed, self.case.number("beta"))}


class OwnBeta(Computes):
    """beta is written down."""

    def loss(self, case: Case) -> Any:
        return dpo(case.packed, 0.1)


class InPlace(Computes):
    """Changes the reference where it lies."""

    def loss(self, case: Case) -> Any:
        loss = super().loss(case)
        case.packed["ref_chosen"].sub_(1)
        case.packed["ref_rejected"].sub_(1)
        return loss


class Backward(Computes):
    """Calls backward."""

    def loss(self, case: Case) -> Any:
        super().loss(case).backward()
        return super().loss(case)


@dataclass
class Float32Alone(Right):
    """Says nothing of dtypes, and takes one."""

    def prepare(self, op: str, case: Case) -> Any:
        if case.packed["chosen"].dtype != torch.float32:
            raise TypeError("expected float32")
        return super().prepare(op, case)


@dataclass
class OneThread(Right):
    """Sets the number of threads."""

    def prepare(self, op: str, case: Case) -> Any:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().prepare(op, case)


@dataclass
class LowPrecision(Right):
    """Sets the precision of products."""

    def prepare(self, op: str, case: Case) -> Any:
        torch.set_float32_matmul_precision("medium")
        return super().prepare(op, case)
