"""Strengths over a run: what multiplies an adapter's weight at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["Fade", "Stretch", "fade_of", "stretches"]

FORM = (
    "'factor@position,...' such as '0@0,1@0.5', positions rising from 0 to 1, or all of them step "
    "numbers above 1"
)
# Folding weights anew costs about as much as three steps with them beside their base do.
FEWEST_FOLDED = 4


@dataclass(frozen=True)
class Fade:
    """A factor over the steps of a run: linear between points, constant outside them.

    Args:
        points: (position, factor), in order.
        in_steps: Positions are numbers of steps, from 0, rather than fractions of the run.
        function: Fraction -> factor; instead of points.
    """

    points: tuple[tuple[float, float], ...] = ()
    in_steps: bool = False
    function: Callable[[float], float] | None = None

    def factors(self, name: str, steps: int) -> tuple[float, ...]:
        """The factor at each of a run's steps; step i of T is at i/T of the run.

        Raises:
            ValueError: The function gives no finite number; ``name`` is in the message.
        """
        if self.function is None:
            return tuple(self._at(i if self.in_steps else i / steps) for i in range(steps))
        return tuple(self._called(name, i / steps) for i in range(steps))

    def _at(self, position: float) -> float:
        before = after = self.points[0]
        for point in self.points:
            before, after = after, point
            if position <= point[0]:
                break
        (start, low), (stop, high) = before, after
        if position <= start or position >= stop:
            return low if position <= start else high
        return low + (high - low) * (position - start) / (stop - start)

    def _called(self, name: str, fraction: float) -> float:
        value = self.function(fraction)
        try:
            factor = float(value)
        except (TypeError, ValueError):
            factor = math.nan
        if not math.isfinite(factor):
            raise ValueError(
                f"weight_schedule[{name!r}]: expected a finite factor at {fraction:g} of the run; "
                f"got {value!r}"
            )
        return factor


@dataclass(frozen=True)
class Stretch:
    """Steps ``start`` to ``stop``: adapters of one factor throughout, if not 1, and the others."""

    start: int
    stop: int
    constant: Mapping[str, float]
    fading: tuple[str, ...]


def fade_of(name: str, value: Any) -> Fade:
    """What ``weight_schedule`` says of an adapter.

    Raises:
        ValueError: It is neither a function nor text of the form "factor@position,...".
    """
    if isinstance(value, Fade):
        return value
    if callable(value):
        return Fade(function=value)
    if not isinstance(value, str):
        raise _refused(name, value, f"{FORM}, or a function of the fraction")
    points = [_point(name, value, piece) for piece in value.split(",")]
    positions = [position for position, _ in points]
    if any(a >= b for a, b in pairwise(positions)):
        raise _refused(name, value, "positions that rise")
    numbers = all(position > 1 and position.is_integer() for position in positions)
    in_steps = numbers and len(points) > 1  # a lone one is a fraction that was mistaken
    if not in_steps and not all(0 <= position <= 1 for position in positions):
        raise _refused(name, value, FORM)
    return Fade(tuple(points), in_steps)


def _point(name: str, value: str, piece: str) -> tuple[float, float]:
    """(position, factor) of "factor@position"."""
    factor, at, position = piece.partition("@")
    try:
        found = float(position), float(factor)
    except ValueError:
        found = math.nan, math.nan
    if not at or not all(map(math.isfinite, found)):
        raise _refused(name, value, FORM)
    return found


def _refused(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"weight_schedule[{name!r}]: expected {expected}; got {value!r}")


def stretches(
    factors: Mapping[str, tuple[float, ...]], steps: int, folds: bool
) -> tuple[Stretch, ...]:
    """A run of ``steps``, cut where constant factors end or begin.

    Args:
        factors: Adapter -> its factor at each step.
        steps: T.
        folds: Whether it pays to hold constant ones apart; else the run is one stretch.
    """
    if not folds or steps < FEWEST_FOLDED:
        return (_stretch(factors, 0, steps),)
    rows = [tuple(f[i] for f in factors.values()) for i in range(steps)]
    cuts = {0, steps}
    start = 0
    for i in range(1, steps + 1):
        if i == steps or rows[i] != rows[start]:
            if i - start >= FEWEST_FOLDED:
                cuts |= {start, i}
            start = i
    ordered = sorted(cuts)
    return tuple(_stretch(factors, a, b) for a, b in pairwise(ordered))


def _stretch(factors: Mapping[str, tuple[float, ...]], start: int, stop: int) -> Stretch:
    seen = slice(start, stop) if stop - start >= FEWEST_FOLDED else slice(None)
    fading = tuple(name for name, f in factors.items() if len(set(f[seen])) > 1)
    constant = {k: f[start] for k, f in factors.items() if k not in fading and f[start] != 1}
    return Stretch(start, stop, constant, fading)
