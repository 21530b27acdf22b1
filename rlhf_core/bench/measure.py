"""One case, all implementations: prepare, check, time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch

from ..failure import flat, told
from ..kernels import BackendError
from .case import Case
from .footprint import compiled_from_disk, compiled_kernels, footprint
from .gate import Expected, Unequal, check, compared, expected
from .implementations import COPIES, EAGER, Implementation
from .operation import Operation, Work
from .prepared import Prepared
from .results import Row
from .roofs import Copy, Roofs
from .timing import Budget, Clock, Timed, interleaved

POOL_BYTES, POOL = 64 * 2**20, range(3, 9)
"""Cases are drawn until their inputs outgrow a cache: at least 3, at most 8."""


COPY = "copy of as many bytes"
LARGE = 2**18
"""Bytes from which a copy is more than a call."""


@dataclass(frozen=True)
class Setting:
    """What all cases of a run have in common."""

    device: torch.device
    lengths: str
    budget: Budget
    clock: Clock
    seed: int = 0


@dataclass
class Checked:
    """An implementation that is ready for every case of the pool, or what is wrong with it."""

    implementation: Implementation
    pool: list[Prepared] = field(default_factory=list)
    first_ms: float = 0.0
    error: float = 0.0
    from_disk: bool = False
    compiled: dict[str, int] = field(default_factory=dict)
    """mode → kernels made by torch.compile"""
    failed: str = ""
    absent: str = ""


def measure(
    operation: Operation, shape: str, dtype: torch.dtype, modes: Sequence[str],
    implementations: Sequence[Implementation], setting: Setting, roofs: Roofs, absent: Callable[[str, str], None],
) -> Iterator[Row]:  # fmt: skip
    """The rows of one shape, a mode after the other.

    Args:
        operation: the op.
        shape: such as ``64x512``.
        dtype: of the inputs.
        modes: what to time.
        implementations: those that say they can.
        setting: device, lengths, budget, clock.
        roofs: of this device.
        absent: told the name of an implementation that turns out not to be there for this case, and why.
    """
    cases = pool(operation, shape, dtype, setting)
    oracle = {0: expected(operation, cases[0]), len(cases) - 1: expected(operation, cases[-1])}
    ready = [checked(operation, one, cases, oracle, setting.device) for one in implementations]
    for one in ready:
        if one.absent:
            absent(one.implementation.name, one.absent)
    ready = [one for one in ready if not one.absent]
    for mode in modes:
        row = Row(
            operation.name, shape, setting.lengths, str(dtype).removeprefix("torch."), setting.device.type, mode,
            impl="", kind="", tokens=_tokens(cases[0]), eager_error=max(one.error for one in oracle.values()),
        )  # fmt: skip
        yield from _timed(operation, cases, ready, mode, row, setting, roofs)


def pool(operation: Operation, shape: str, dtype: torch.dtype, setting: Setting) -> list[Case]:
    """Cases of one shape with different numbers, of the same lengths."""
    cases: list[Case] = []
    while len(cases) < POOL[0] or (len(cases) < POOL[-1] and sum(case.bytes for case in cases) < POOL_BYTES):
        seed = 1000 * setting.seed + len(cases)
        cases.append(operation.case(shape, setting.lengths, dtype, setting.device, seed))
    return cases


def checked(
    operation: Operation, implementation: Implementation, cases: Sequence[Case], oracle: dict[int, Expected],
    device: torch.device,
) -> Checked:  # fmt: skip
    """Prepare an implementation for every case, call it once on each, and compare the first and the last."""
    one = Checked(implementation)
    benchmark = implementation.benchmark
    assert benchmark is not None  # `chosen` refuses broken ones
    try:
        for place, case in enumerate(cases):
            prepared = Prepared(case, benchmark.prepare(operation.name, case))
            found_before = compiled_from_disk()
            before, start = compiled_kernels(), time.perf_counter()
            outputs = prepared.forward()
            between = compiled_kernels()
            found = compared(operation, prepared, outputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if place == 0:
                one.first_ms = 1e3 * (time.perf_counter() - start)
                one.from_disk = compiled_from_disk() > found_before
                after = compiled_kernels()
                one.compiled = {"fwd": between - before, "bwd": after - between, "full": after - before}
            if place in oracle:
                one.error = max(one.error, check(operation, found, oracle[place], implementation.kind))
            one.pool.append(prepared)
    except BackendError as error:  # ours cannot compute this call, which is no fault
        one.absent = flat(error)
    except Unequal as error:
        one.failed = flat(error)
    except Exception as error:  # a stranger's code may raise anything: its row says so, and the others go on
        one.failed = told(error)
    return one


def _timed(
    operation: Operation, cases: Sequence[Case], ready: Sequence[Checked], mode: str, row: Row, setting: Setting,
    roofs: Roofs,
) -> Iterator[Row]:  # fmt: skip
    work = operation.work(cases[0], mode)
    copies = [Copy(work.bytes, setting.device) for _ in cases]
    pools: dict[str, Sequence[Timed]] = {one.implementation.name: one.pool for one in ready if not one.failed}
    costs = {
        one.implementation.name: footprint(one.pool[0], mode, setting.device, one.compiled.get(mode, 0))
        for one in ready
        if not one.failed
    }
    times = interleaved(pools | {COPY: copies}, mode, setting.clock, setting.budget)
    copy = copies[0].bytes / median(times[COPY]) * 1e3
    row.noise = median(times[COPY]) / min(times[COPY])
    if work.bytes > LARGE:  # no smaller copy is slower than one in DRAM
        row.noise = max(row.noise, roofs.dram / copy)
    eager, copied = times.get(EAGER), times.get(COPIES)
    row.copied = operation.copied(cases[0], mode)
    for one in ready:
        name = one.implementation.name
        found = Row(**vars(row) | {"impl": name, "kind": one.implementation.kind, "times_ms": []})
        if one.failed:
            found.status, found.reason = "failed", one.failed
        else:
            found.error, found.first_ms, found.from_disk = one.error, one.first_ms, one.from_disk
            found.peak_bytes, found.launches = costs[name].peak, costs[name].launches
            _summarise(found, times[name], eager, work, copy, roofs)
            if copied and found.median_ms:
                found.speedup_copies = median(copied) / found.median_ms
        yield found


def _summarise(row: Row, times: list[float], eager: list[float] | None, work: Work, copy: float, roofs: Roofs) -> None:
    """Fill in what follows from the times."""
    row.times_ms, row.repetitions = [round(ms, 5) for ms in times], len(times)
    fifths = quantiles(times, n=5, method="inclusive")
    row.median_ms, row.p20_ms, row.p80_ms, row.best_ms = median(times), fifths[0], fifths[-1], min(times)
    if eager:
        row.speedup, row.speedup_best = median(eager) / row.median_ms, min(eager) / row.best_ms
    seconds = row.median_ms / 1e3
    row.bytes, row.flops = work.bytes, work.flops
    products = work.flops / roofs.gemm
    if products > work.bytes / copy:
        row.bound, row.rate, row.roof = "flops", work.flops / seconds, roofs.gemm
    else:
        row.bound, row.rate, row.roof = "bytes", work.bytes / seconds, copy
    row.roof_share = max(products, work.bytes / copy) / seconds
    row.dram_share = max(products, work.bytes / roofs.dram) / seconds


def _tokens(case: Case) -> int:
    return int(case.packed["cu_seqlens"][-1]) if "cu_seqlens" in case.packed else len(next(iter(case.packed.values())))
