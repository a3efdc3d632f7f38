"""What ``enable`` was asked for, and the empty report of a call that runs with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from ..adapters.weights import WeightReport
from ..methods import CLoRA, Merge, Method
from ..ops.backends import backends
from .summary import Summary

__all__ = ["Settings", "new_summary"]


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


def _backend(asked: str, device: torch.device) -> str:
    """What the ops run on."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        found = backends()
        return next(name for name in ("cuda", "triton", "torch") if found[name]["available"])
    return "cpu" if device.type == "cpu" else "torch"
