"""What the host does in a run: launches, waits, kernels of ours, and time inside the UNet calls."""

import functools
import statistics
import time
from collections.abc import Callable

import torch

WAITS = ("Synchronize", "cudaMemcpy")  # of the runtime; cudaMemcpyAsync waits for nothing
LAUNCHES = ("LaunchKernel", "GraphLaunch")
OURS = "cmlora::cuda"


def count_calls(run: Callable[[], object], steps: int) -> dict:
    """Calls of the CUDA runtime and our kernels in one run of ``steps`` steps."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    waits = {
        name: count
        for name, count in counts.items()
        if any(kind in name for kind in WAITS) and "Async" not in name
    }
    return {
        "launches_per_step": _total(counts, LAUNCHES) / steps,
        "waits": waits,  # one of them is this function's own
        "our_kernels": {name: n for name, n in counts.items() if OURS in name},
    }


def _total(counts: dict[str, int], parts: tuple[str, ...]) -> int:
    return sum(n for name, n in counts.items() if any(part in name for part in parts))


def unet_ms(unet, run: Callable[[], object]) -> list[float]:
    """Host time of every UNet call of a run, which returns when its work is queued."""
    forward, times = unet.forward, []

    @functools.wraps(forward)
    def timed(*args, **kwargs):
        start = time.perf_counter()
        try:
            return forward(*args, **kwargs)
        finally:
            times.append(1e3 * (time.perf_counter() - start))

    unet.__dict__["forward"] = timed
    try:
        run()
    finally:
        unet.__dict__["forward"] = forward
    return times


def host_ms(unet, run: Callable[[], object]) -> dict:
    """The first UNet call of a run, which prepares it, and the median of the others."""
    first, *others = unet_ms(unet, run)
    return {"host_ms_first": first, "host_ms_per_step": statistics.median(others or [first])}
