"""Where a run is in its ``weight_schedule``, and the adapters at the strengths of a step."""

from __future__ import annotations

from dataclasses import replace

from ..adapters import Execution, LoadedAdapters
from ..schedule import Stretch, stretches
from .settings import Settings

__all__ = ["Fading"]


class Fading:
    """The strengths of ``adapters`` over a run of ``steps``; its functions are asked here.

    ``held``: constant stretches are worth weights of their own.

    Raises:
        ValueError: A function of the schedule gives no finite number.
    """

    def __init__(self, settings: Settings, adapters: LoadedAdapters, steps: int, held: bool):
        schedule = settings.weight_schedule or {}
        self._factors = {
            name: schedule[name].factors(name, steps) for name in adapters.names if name in schedule
        }
        self._stretches = stretches(self._factors, steps, held) if self._factors else ()

    def _at(self, step: int) -> Stretch | None:
        return next((s for s in self._stretches if s.start <= step < s.stop), None)

    def adapters(self, adapters: LoadedAdapters, step: int) -> LoadedAdapters:
        """As strong as they are at a step."""
        factors = {name: f[step] for name, f in self._factors.items() if f[step] != 1}
        return adapters.scaled(factors)

    def execution(self, execution: Execution, step: int) -> Execution:
        """Beside the bases where strengths change from step to step: folds would not last."""
        stretch = self._at(step)
        fades = stretch is not None and bool(stretch.fading)
        return replace(execution, weights="delta") if fades else execution

    def moves(self, step: int, since: int) -> bool:
        """Whether a step's strengths, or how they run, are other than those of another."""
        differ = any(f[step] != f[since] for f in self._factors.values())
        return differ or self._at(step) != self._at(since)
