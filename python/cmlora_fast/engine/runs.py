"""What runs a method."""

from __future__ import annotations

from ..methods import CLoRA
from .contrast import ContrastRun
from .forecast import ForecastRun
from .planned import PlannedRun
from .run import Run
from .settings import Settings

__all__ = ["run_of"]

RUNS: dict[type, type[Run]] = {CLoRA: ContrastRun}  # of the other methods: PlannedRun


def run_of(settings: Settings) -> type[Run]:
    """The class whose instances are runs with ``settings``."""
    if getattr(settings.planned, "cache", "features") != "features":
        return ForecastRun
    return RUNS.get(type(settings.method), PlannedRun)
