"""Which kernels the device runs in a step, and what the host waits for."""

from __future__ import annotations

import torch

from .pipelines import Model, Variant, call_arguments, enabled

WAITS = ("Synchronize", "cudaMemcpy")  # of the runtime; cudaMemcpyAsync waits for nothing
LAUNCHES = ("LaunchKernel", "GraphLaunch")
MOST = 40  # kernels that are listed


@torch.inference_mode()
def by_kernel(pipe, model: Model, variant: Variant) -> dict:
    """Milliseconds and launches per step of one image of a few steps, the longest kernels first."""
    inputs, steps = call_arguments(pipe, model.size, model.short), model.short
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if pipe.unet.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with enabled(pipe, variant):
        for _ in range(3):
            pipe(**inputs)
        with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
            pipe(**inputs)
            if len(kinds) > 1:
                torch.cuda.synchronize()
    events = profile.key_averages()
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    on_device.sort(key=lambda e: -e.self_device_time_total)
    counts = {event.key: event.count for event in events}
    return {
        "device_ms_per_step": sum(e.self_device_time_total for e in on_device) / 1e3 / steps,
        "kernels_per_step": sum(e.count for e in on_device) / steps,
        "launches_per_step": _total(counts, LAUNCHES) / steps,
        "waits": {
            k: n for k, n in counts.items() if any(w in k for w in WAITS) and "Async" not in k
        },
        "kernels": [
            [e.key[:160], e.self_device_time_total / 1e3 / steps, e.count / steps]
            for e in on_device[:MOST]
        ],
    }


def _total(counts: dict[str, int], parts: tuple[str, ...]) -> int:
    return sum(n for name, n in counts.items() if any(part in name for part in parts))
