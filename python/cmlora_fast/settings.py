"""What ``enable`` was asked for, and the empty report of a call that runs with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import psutil
import torch

from .adapters.weights import WeightReport
from .clora_method import CLoRA
from .methods import Merge, Method
from .ops.backends import backends
from .records import Summary

__all__ = ["Settings", "memory_in_use", "new_summary", "on_gpu"]


@dataclass(frozen=True)
class Settings:
    """What ``enable`` was asked for; ``method`` None is the lossless mode."""

    method: Method | CLoRA | None = None
    backend: str = "auto"
    weights: str = "auto"
    max_rows: int | None = None
    record: bool = False
    graphs: str = "auto"

    @property
    def planned(self) -> Method | CLoRA:
        return Merge() if self.method is None else self.method


def new_summary(
    settings: Settings,
    adapters: tuple[str, ...],
    weights: WeightReport,
    no_cache: str | None,
    device: torch.device,
) -> Summary:
    """A summary without steps. ``no_cache``: why features are not cached, None where they are."""
    method = settings.method
    return Summary(
        method=None if method is None else type(method).__name__.lower(),
        adapters=adapters,
        backend=_backend(settings.backend, device),
        weights=asdict(weights),
        cache={"used": no_cache is None, "reason": no_cache or "as the method schedules"},
    )


def on_gpu(device: torch.device) -> bool:
    """Whether work is queued there and the host had better not wait for it."""
    return device.type == "cuda"


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of a GPU's allocator, or what the process holds now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _backend(asked: str, device: torch.device) -> str:
    """What the ops run on."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        found = backends()
        return next(name for name in ("cuda", "triton", "torch") if found[name]["available"])
    return "cpu" if device.type == "cpu" else "torch"
