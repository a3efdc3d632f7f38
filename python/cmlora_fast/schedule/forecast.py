"""Which steps run the UNet, and for whom, where predictions are forecast. Pure Python.

``cache="forecast"`` after Spectrum (arXiv 2603.01623): whole steps are skipped, ever more of them.
``cache="relay"``: the adapters of a step take turns.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..methods import Method, Switch
from .stepplan import Plan, StepPlan

__all__ = ["FEWEST_STEPS", "real_steps", "with_forecasts"]

FEWEST_STEPS = 12  # below, nothing is skipped: too few predictions to go by
WARM_UP = 4
WINDOW, GROWTH = 2.0, 0.5  # steps from one that runs to the next, and how much more each time
TAIL = 10  # the last of so many parts of the run is never skipped
RELAY_WARM_UP = 2  # a line has two points


def real_steps(method: Method, T: int) -> frozenset[int]:
    """Steps of a run of T at which the UNet runs, with ``cache="forecast"``."""
    if T < FEWEST_STEPS:
        return frozenset(range(T))
    tail = T - math.ceil(T / TAIL)
    real = {*range(WARM_UP), *range(tail, T)}
    k, window, i = method.cache_interval, WINDOW, WARM_UP - 1
    while i < tail:
        i += int(window) if k in (1, "nonuniform") else k
        window += GROWTH
        real.add(min(i, T - 1))
    return frozenset(real)


def with_forecasts(method: Method, plan: Plan) -> Plan:
    """A plan that runs everything, as ``method.cache`` has it."""
    if method.cache == "features":
        return plan
    marked = _relayed if method.cache == "relay" else _skipped
    return replace(plan, steps=marked(method, plan.steps))


def _skipped(method: Method, steps: tuple[StepPlan, ...]) -> tuple[StepPlan, ...]:
    real, since, before, marked = real_steps(method, len(steps)), 0, None, []
    for i, step in enumerate(steps):
        # Another adapter's predictions are no line with this one's.
        since = since + 1 if step.groups == before else 0
        runs = i in real or (isinstance(method, Switch) and since < 2)
        marked.append(replace(step, real=None if runs else (False,) * len(step.groups)))
        before = step.groups
    return tuple(marked)


def _relayed(method: Method, steps: tuple[StepPlan, ...]) -> tuple[StepPlan, ...]:
    k = 1 if method.cache_interval == "nonuniform" else method.cache_interval
    marked = list(steps[:RELAY_WARM_UP])
    for i, step in enumerate(steps[RELAY_WARM_UP:]):
        N = len(step.groups)
        turns = {(i * k + m) % N for m in range(min(k, N))}
        runs = tuple(j in turns for j in range(N))
        marked.append(replace(step, real=None if all(runs) else runs))
    return tuple(marked)
