"""Which backend computes an op: a registry of implementations, and the choice among them.

An op is defined by its eager function; other backends add themselves with ``Op.add`` and say what they can compute.
``auto`` takes the fastest that can; a backend asked for by name computes the call or raises.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Generic, ParamSpec, TypedDict, TypeVar

import torch
from torch import Tensor

from ..errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

FASTEST_FIRST = ("cuda", "triton", "cpu", "eager")
"""The order in which ``auto`` tries."""

ABSENT = "not in this release"

_log = logging.getLogger("rlhf_core.kernels")


class BackendError(UserError, ValueError):
    """A backend was asked for that does not exist or cannot compute the call."""


class Row(TypedDict):
    """One op on one backend, as ``rlhf doctor`` and env.json show it.

    ``reason`` is empty where it is available; ``note`` is what to know of it, as a rule nothing.
    """

    op: str
    backend: str
    available: bool
    reason: str
    note: str


class Used(TypedDict):
    """The backend an op last ran on in this process, and why not a faster one."""

    backend: str
    why_not_faster: str


@dataclass(frozen=True)
class Implementation(Generic[P, R]):
    """An op on a backend.

    Attributes:
        run: computes it; takes what the op's eager definition takes.
        devices: device types it runs on; empty means all.
        dtypes: dtypes it takes; empty means all.
        refuses: says why it cannot compute a call with these arguments, or None.
        unavailable: why it cannot run on this machine, or None.
        note: what its user should know: that it has never run on real hardware, for one.
    """

    run: Callable[P, R]
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    refuses: Callable[P, str | None] | None = None
    unavailable: str | None = None
    note: str = ""
    not_here: str = field(init=False, default="")  # why it does not take a tensor of another device

    def __post_init__(self) -> None:
        # Made once: a call takes microseconds, and torch.compile does not trace functools.cached_property.
        object.__setattr__(self, "not_here", f"runs on {' and '.join(self.devices)} alone")

    def elsewhere(self, like: Tensor) -> bool:
        """Whether it is for other devices than that of this tensor."""
        return bool(self.devices) and like.device.type not in self.devices

    def why_not(self, like: Tensor, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """Why it cannot compute this call, or None."""
        if self.elsewhere(like):
            return self.not_here
        if self.unavailable:
            return self.unavailable
        if self.dtypes and like.dtype not in self.dtypes:
            return f"takes {' and '.join(map(str, self.dtypes))}, not {like.dtype}"
        return self.refuses(*args, **kwargs) if self.refuses else None


@dataclass
class _Choices:
    default: str = "auto"
    per_op: dict[str, str] = field(default_factory=dict)


_ops: "dict[str, Op[..., object]]" = {}
_choices = _Choices()
_used: dict[str, Used] = {}
_last: dict[str, tuple[str, dict[str, str]]] = {}
_logged: set[str] = set()


class Op(Generic[P, R]):
    """An op by name, its eager definition, and the backends that compute it too."""

    def __init__(self, name: str, eager: Callable[P, R]) -> None:
        self.name = name
        self.implementations: dict[str, Implementation[P, R]] = {"eager": Implementation(eager)}
        _ops[name] = self  # type: ignore[assignment]  # the registry only reads what is the same for all ops

    def add(self, backend: str, implementation: Implementation[P, R]) -> None:
        """Register a backend of this op: the one place that has to know of it."""
        self.implementations[_known("backend", backend, FASTEST_FIRST)] = implementation

    def __call__(self, backend: str | None, like: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the op; ``like`` is the tensor whose device and dtype decide who can.

        Raises:
            BackendError: the backend asked for, here or by ``set_backend``, cannot compute this call.
        """
        wanted = backend or _choices.per_op.get(self.name) or self._default()
        name, why = self._pick(wanted, like, *args, **kwargs)
        if not torch.compiler.is_compiling():  # a traced call must neither log nor guard on this record
            self._remember(name, why, like)
        run = self.implementations[name].run
        if not torch.is_autocast_enabled(like.device.type):
            return run(*args, **kwargs)
        with torch.autocast(like.device.type, enabled=False):  # an op computes in what it is given, not in less
            return run(*args, **kwargs)

    def _default(self) -> str:
        """The backend chosen for all ops; an op that has no such backend yet is not meant by that."""
        return _choices.default if _choices.default in self.implementations else "auto"

    def _pick(self, wanted: str, like: Tensor, *args: P.args, **kwargs: P.kwargs) -> tuple[str, dict[str, str]]:
        """The backend to use, and why each faster one that exists for this device is not."""
        if wanted != "auto":
            known = _known("backend", wanted, FASTEST_FIRST)
            reason = self._why_not(known, like, *args, **kwargs)
            if reason:
                raise BackendError(f"backend={wanted} cannot compute {self.name}: {reason}; choose auto or eager")
            return wanted, {}
        why: dict[str, str] = {}
        for name in FASTEST_FIRST:
            reason = self._why_not(name, like, *args, **kwargs)
            if reason is None:
                return name, why
            why[name] = reason
        raise BackendError(f"no backend can compute {self.name}: {why}")

    def _remember(self, name: str, why: dict[str, str], like: Tensor) -> None:
        """Record what ran; log, once, a backend that is faster, is for this device and did not take the call."""
        if _last.get(self.name) == (name, why):  # as a rule: nothing new to say
            return
        _last[self.name] = (name, why)
        _used[self.name] = {"backend": name, "why_not_faster": "; ".join(f"{faster}: {why[faster]}" for faster in why)}
        for faster, reason in why.items():
            found = self.implementations.get(faster)
            line = f"{self.name} runs on {name}, not on {faster}: {reason}"
            if found is not None and not found.elsewhere(like) and line not in _logged:
                _logged.add(line)
                _log.warning(line)

    def _why_not(self, name: str, like: Tensor, *args: P.args, **kwargs: P.kwargs) -> str | None:
        implementation = self.implementations.get(name)
        return ABSENT if implementation is None else implementation.why_not(like, *args, **kwargs)


def set_backend(default: str = "auto", per_op: Mapping[str, str] | None = None) -> None:
    """Choose the backend of all ops, and of single ones; an op's own ``backend`` argument goes before both.

    An op that has the backend raises where it cannot compute a call. An op that no release has it for yet goes by
    ``auto`` where the backend was chosen for all ops, and raises where it was chosen for this one.

    Raises:
        BackendError: there is no such backend or op.
    """
    backends = ("auto", *FASTEST_FIRST)
    chosen = {_known("op", op, tuple(_ops)): _known("backend", name, backends) for op, name in (per_op or {}).items()}
    _used.clear()  # a record of what ran under this choice
    _last.clear()
    _choices.default, _choices.per_op = _known("backend", default, backends), chosen


def status() -> list[Row]:
    """Every op on every backend: whether it can run on this machine, and why not."""
    rows: list[Row] = []
    for op in sorted(_ops):
        for name in FASTEST_FIRST:
            found = _ops[op].implementations.get(name)
            reason = (found.unavailable or "") if found else ABSENT
            note = found.note if found else ""
            rows.append({"op": op, "backend": name, "available": not reason, "reason": reason, "note": note})
    return rows


def used() -> dict[str, Used]:
    """What each op that ran in this process last ran on (calls traced by torch.compile are not recorded)."""
    return {op: _used[op] for op in sorted(_used)}


def _known(kind: str, name: str, choices: tuple[str, ...]) -> str:
    if name in choices:
        return name
    near = get_close_matches(name, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise BackendError(f"no {kind} {name!r}; there are {', '.join(choices)}{hint}")
