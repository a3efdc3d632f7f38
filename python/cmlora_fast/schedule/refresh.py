"""Schedule steps: when cached features are refreshed (cmlora spec §1.4). Pure Python."""

from __future__ import annotations

from ..methods import Method
from .forecast import real_steps

__all__ = ["refresh_steps", "reuses"]

# Published break points of the non-uniform schedule and its intervals before, between and after.
BREAKS = (0.375, 0.875)
INTERVALS = (2, 3, 2)
POW_STEP = 0.02  # how much the search for a centred schedule lowers pow at a time


def reuses(method: Method) -> bool:
    """Whether cached features are used at all.

    The released gate is ``cache_interval > 1``, and its "nonuniform" is the number 0.
    """
    if method.cache != "features":
        return False
    released_gate = method.reference_compat and method.cache_interval == "nonuniform"
    return method.cache_interval != 1 and not released_gate


def refresh_steps(method: Method, T: int) -> frozenset[int]:
    """Steps of a run of T steps at which what is kept is made anew; always contains 0.

    Raises:
        ValueError: ``center`` and ``pow`` give no schedule.
    """
    if method.cache == "relay":
        return frozenset(range(T))
    if method.cache == "forecast":
        return real_steps(method, T)
    k = method.cache_interval
    if k == "nonuniform":
        ends = [0, *(int(fraction * T) for fraction in BREAKS), T]
        spans = zip(ends, ends[1:], INTERVALS, strict=False)
        return frozenset(i for start, stop, step in spans for i in range(start, stop, step))
    if method.uniform or k == 1:
        return frozenset(range(0, T, k))
    points = -(-T // k)
    steps = _centred(T, points, method.center, method.pow)
    if steps is None:
        raise ValueError(
            f"{type(method).__name__}.pow: expected a value that gives a schedule of {points} "
            f"refreshes in {T} steps with center={method.center!r}; got {method.pow!r}"
        )
    return frozenset(i for i in steps if 0 <= i < T)


def _centred(T: int, n: int, center: float, power: float) -> list[int] | None:
    """The quad-centre schedule of DeepCache: n steps, denser near ``center``."""
    while power > 1:
        start, stop = (complex(x) ** (1 / power) for x in (-center, T - center))
        points = (start + (stop - start) * m / n for m in range(n + 1))
        inner = sorted({int((x**power).real) for x in points})[1:-1]
        steps = sorted({0, *(int(x + center) for x in inner)})
        if len(steps) == n:
            return steps
        power -= POW_STEP
    return None
