"""One way to time callables, used by every benchmark."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one callable over all rounds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile


def paired_ms(
    calls: dict[str, Callable[[], object]], *, seconds: float = 0.5, rounds: int = 15
) -> dict[str, Timing]:
    """Wall time of each callable, in rounds of changing order so that all meet the same machine.

    A round repeats a short callable until it takes a millisecond, and counts the mean. A call that
    is not counted goes before, so that each finds the caches as it leaves them itself.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times = {name: [] for name in calls}
    order = random.Random(0)
    stop = time.perf_counter() + seconds * len(calls)
    while len(times[next(iter(calls))]) < rounds or time.perf_counter() < stop:
        for name in order.sample(list(calls), len(calls)):
            times[name].append(_elapsed_ms(calls[name], repeats[name]))
    return {name: _summary(values) for name, values in times.items()}


def _repeats(call: Callable[[], object]) -> int:
    for _ in range(3):
        call()
    return max(1, round(1 / max(1e-4, _elapsed_ms(call, 1))))


def _elapsed_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize()
    return 1e3 * (time.perf_counter() - start) / repeats


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)
