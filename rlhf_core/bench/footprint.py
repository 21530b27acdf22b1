"""What a call costs beside time: the peak of memory above its inputs, and how many kernels it launches.

CPU: torch's profiler, which sees every allocation that goes through torch's allocator, those inside compiled ops
included, and every ATen or custom op. What a library takes by malloc is not seen; so at least the memory of all that
was returned counts. An op called by another, a view and a mere allocation are no launch. Kernels that torch.compile
made run outside the dispatcher: they are counted when they are made.

GPU: the caching allocator's own peak, and the device kernels that the profiler saw.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .prepared import Prepared

# Views, allocations, and ops that are only made of others (which are counted then).
NO_LAUNCH = frozenset(
    (
        "_local_scalar_dense", "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "chunk",
        "contiguous", "detach", "detach_", "empty", "empty_like", "empty_strided", "expand", "expand_as", "flatten",
        "is_nonzero", "item", "lift_fresh", "narrow", "new_empty", "numpy_T", "permute", "requires_grad_", "reshape",
        "resize_", "resolve_conj", "resolve_neg", "result_type", "select", "size", "slice", "split", "squeeze",
        "stride", "t", "to", "transpose", "transpose_", "unbind", "unflatten", "unsqueeze", "unsqueeze_", "view",
        "view_as",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, above the inputs; launches, None where the profiler could not see them."""

    peak: int
    launches: int | None


os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports to stderr when it starts and stops


def footprint(prepared: Prepared, mode: str, device: torch.device, compiled: int = 0) -> Footprint:
    """Of one call of ``mode``.

    Args:
        prepared: the implementation, ready and warm.
        mode: ``fwd``, ``bwd`` or ``full``; the memory of ``bwd`` is that of ``full``: what the forward kept counts.
        device: where it runs.
        compiled: kernels that torch.compile made for this mode.
    """
    if mode == "bwd":
        outputs = prepared.forward()
        _, launches = _profiled(lambda: prepared.backward(outputs, keep=True), prepared, device)
        del outputs
        peak, _ = _profiled(prepared.full, prepared, device)
    else:
        peak, launches = _profiled(prepared.full if mode == "full" else prepared.forward, prepared, device)
    return Footprint(peak, None if launches is None else launches + compiled * (device.type == "cpu"))


def compiled_kernels() -> int:
    """How many kernels torch.compile has made in this process."""
    metrics = sys.modules.get("torch._inductor.metrics")
    return int(getattr(metrics, "generated_kernel_count", 0))


def compiled_from_disk() -> int:
    """How many graphs torch.compile took from its cache on disk."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    pairs = (("inductor", "fxgraph_cache_hit"), ("aot_autograd", "autograd_cache_hit"))
    return sum(counters[part][name] for part, name in pairs if part in counters)


def _profiled(call: Callable[[], object], prepared: Prepared, device: torch.device) -> tuple[int, int | None]:
    return _on_gpu(call, device) if device.type == "cuda" else _on_cpu(call, prepared)


def _on_cpu(call: Callable[[], object], prepared: Prepared) -> tuple[int, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = call()
    now = peak = launches = busy_until = 0
    # The parsed events would take seconds for a loop over 2048 tokens.
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        name = event.name()
        if name == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
        elif event.start_ns() >= busy_until and _is_launch(name):
            busy_until = event.end_ns()
            launches += 1
    own = {tensor.untyped_storage().data_ptr() for tensor in prepared.case.packed.values()}
    returned = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(result)}
    held = sum(size for place, size in returned.items() if place not in own)
    return max(peak, held), launches


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping | tuple):
        for part in result.values() if isinstance(result, Mapping) else result:
            yield from _tensors(part)


def _is_launch(name: str) -> bool:
    return "::" in name and "autograd::" not in name and name.rpartition("::")[2] not in NO_LAUNCH


def _on_gpu(call: Callable[[], object], device: torch.device) -> tuple[int, int | None]:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize(device)
    events = profiler.profiler.kineto_results.events()
    kernels = [event for event in events if event.device_type().name == "CUDA" and not event.is_user_annotation()]
    return peak, len(kernels) or None
