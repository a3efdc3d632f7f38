"""Device time of kernels that find the L2 cache cold, and host time of their calls."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

L2_TIMES = 4  # memory that a round touches, in sizes of the cache
ROUNDS = 15
FEWEST = 8  # calls of a round


def copies_for(bytes_per_call: int, device: torch.device) -> int:
    """Calls on separate memory that push each other out of the cache."""
    if device.type == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(FEWEST, min(256, -(-L2_TIMES * cache // max(1, bytes_per_call))))


def device_us(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median time of one call; each of ``calls`` works on memory of its own.

    On a GPU they are replayed as one graph, so that the host's time does not count.
    """
    if device.type == "cpu":
        return host_us(calls, device)
    for call in calls:
        call()  # compiles and loads before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return 1e3 * statistics.median(_replay_ms(graph) for _ in range(ROUNDS)) / len(calls)


def _replay_ms(graph: "torch.cuda.CUDAGraph") -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def host_us(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median time until an eager call returns."""
    times = []
    for call in [*calls[:1] * 3, *calls]:
        wait(device)
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    wait(device)
    return statistics.median(times[3:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
