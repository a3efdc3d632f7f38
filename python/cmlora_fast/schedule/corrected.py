"""``plan`` turns a method into a ``Plan``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..methods import CMLoRA, Composite, Merge, Method, Switch
from .forecast import with_forecasts
from .refresh import refresh_steps, reuses
from .released import plan_released
from .stepplan import Choice, Measure, Plan, StepPlan, last_only, shares, singles

__all__ = ["follows_steps", "partition", "plan", "text_adapters"]


def partition(
    adapters: Sequence[str], low_frequency: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """High-frequency and low-frequency adapters, both in the given order (cmlora spec §1.3)."""
    if low_frequency is not None:
        return (
            [name for name in adapters if name not in low_frequency],
            [name for name in adapters if name in low_frequency],
        )
    low = [name for name in adapters if name.startswith("background")]
    return [name for name in adapters if name not in low], low


def plan(method: Method, adapters: Sequence[str], timesteps: int, *, guided: bool = True) -> Plan:
    """The schedule of a run.

    Args:
        method: An instance of ``Merge``, ``Switch``, ``Composite`` or ``CMLoRA``.
        adapters: Active adapters of non-zero weight, in ``set_adapters`` order.
        timesteps: T, the number of denoising steps, >= 1.
        guided: Whether classifier-free guidance is on (the released loops differ without it).

    Raises:
        ValueError: ``center`` and ``pow`` give no schedule, or released behaviour is undefined.
    """
    return with_forecasts(method, _plan(method, adapters, timesteps, guided))


def _plan(method: Method, adapters: Sequence[str], timesteps: int, guided: bool) -> Plan:
    if not adapters or isinstance(method, Merge):
        return _merge(method, tuple(adapters), timesteps)
    if isinstance(method, Switch):
        return _switch(method, list(adapters), timesteps)
    if isinstance(method, Composite):
        return _composite(method, tuple(adapters), timesteps, guided)
    if isinstance(method, CMLoRA):
        if method.reference_compat:
            return plan_released(method, list(adapters), timesteps, guided)
        return _cmlora(method, list(adapters), timesteps)
    raise TypeError(f"plan: expected a method with a schedule; got {method!r}")


def text_adapters(method: Method, adapters: Sequence[str]) -> tuple[str, ...] | None:
    """Adapters that are alone active while a run's prompt is encoded; None: those that are.

    The released Switch encodes it with its first adapter.
    """
    if not isinstance(method, Switch) or not adapters:
        return None
    leaders, _ = _switch_leaders(method, list(adapters), 1)
    return (adapters[leaders[0]],)


def follows_steps(method: Method, adapters: Sequence[str]) -> bool:
    """Whether it matters to what a step does which one of how many it is."""
    if method.cache == "forecast" or (method.cache == "relay" and len(adapters) > 1):
        return True
    return reuses(method) or (isinstance(method, Switch | CMLoRA) and len(adapters) > 1)


def _merge(method: Method, adapters: tuple[str, ...], T: int) -> Plan:
    schedule, reuse = refresh_steps(method, T), reuses(method)
    steps = [StepPlan((0,), Choice(None, (not reuse or i in schedule,), (1.0,))) for i in range(T)]
    return Plan((adapters,), tuple(steps), reuse)


def _composite(method: Composite, adapters: tuple[str, ...], T: int, guided: bool) -> Plan:
    schedule, reuse, N = refresh_steps(method, T), reuses(method), len(adapters)
    weights = (1.0 / N,) * N
    if method.reference_compat and not guided:
        weights = last_only(N)
    groups = tuple(range(N))
    steps = [
        StepPlan(groups, Choice(None, (not reuse or i in schedule,) * N, weights)) for i in range(T)
    ]
    return Plan(singles(adapters), tuple(steps), reuse)


def _switch(method: Switch, adapters: list[str], T: int) -> Plan:
    schedule, reuse = refresh_steps(method, T), reuses(method)
    leaders, early_steps = _switch_leaders(method, adapters, T)
    steps, before = [], None
    for i, leader in enumerate(leaders):
        # One cache per adapter, dropped when it becomes active; the released code shares one.
        changed = leader != before and not method.reference_compat
        refresh = not reuse or i in schedule or changed
        stage = i < early_steps if method.partition else None
        choice = Choice(adapters[leader], (refresh,), (1.0,))
        steps.append(StepPlan((leader,), choice, stage=stage))
        before = leader
    return Plan(singles(adapters), tuple(steps), reuse)


def _switch_leaders(method: Switch, adapters: list[str], T: int) -> tuple[list[int], int]:
    tau, N = method.switch_step, len(adapters)
    early_steps = _early_steps(method.stage_fraction, T)
    if method.reference_compat:  # the callback runs after step i > 0: the first keeps tau + 1 steps
        return [max(0, (i - 1) // tau) % N for i in range(T)], early_steps
    high, low = partition(adapters, method.low_frequency)
    if not method.partition or not high or not low:
        return [(i // tau) % N for i in range(T)], early_steps
    rotation = [high[(i // tau) % len(high)] for i in range(min(early_steps, T))]
    rotation += [low[(i // tau) % len(low)] for i in range(T - len(rotation))]
    return [adapters.index(name) for name in rotation], early_steps


def _cmlora(method: CMLoRA, adapters: list[str], T: int) -> Plan:
    high, low = partition(adapters, method.low_frequency)
    order = high + low
    pools = _pools(method, order, high, low)
    schedule, reuse = refresh_steps(method, T), reuses(method)
    clock = _changes(T) if method.variant == "async" else schedule
    early_steps = _early_steps(method.stage_fraction, T) if low else T
    steps, turn, coeff, stage = [], 0, method.dominant_coeff or len(order) - 0.5, True
    leaders = (pools[0][0], pools[1][0])
    for i in range(T):
        moves = i in clock
        if moves:
            leaders = tuple(pool[turn % len(pool)] for pool in pools)
            if turn > 0 and method.decay == "live":
                coeff = max(method.coeff_floor, coeff - 0.5**turn)
            turn += 1
            stage = i < early_steps
        scheduled = moves or i in schedule
        early, late = (
            Choice(
                order[leader],
                _refreshed(method, len(order), leader, i == 0 or not reuse, scheduled),
                shares(len(order), leader, coeff),
            )
            for leader in leaders
        )
        steps.append(_staged_step(method.variant, len(order), early, late, stage, moves))
    measure = _measure(method, early_steps) if method.variant == "online" else None
    return Plan(singles(order), tuple(steps), reuse, measure, method.max_age)


def _pools(
    method: CMLoRA, order: list[str], high: list[str], low: list[str]
) -> tuple[list[int], list[int]]:
    """Positions in ``order`` that take turns early, and late."""
    everyone = list(range(len(order)))
    if method.variant == "async" or not high or not low:
        return everyone, everyone
    late = everyone[1:] if method.late == "tail" else everyone[len(high) :]
    return everyone[: len(high)], late


def _staged_step(
    variant: str, N: int, early: Choice, late: Choice, stage: bool, moves: bool
) -> StepPlan:
    groups = tuple(range(N))
    if variant == "online":
        return StepPlan(groups, early, late, decides=moves)
    if variant == "async":
        return StepPlan(groups, early)
    return StepPlan(groups, early if stage else late, stage=stage)


def _refreshed(
    method: CMLoRA, N: int, leader: int, everyone: bool, scheduled: bool
) -> tuple[bool, ...]:
    if everyone or (scheduled and method.dominant_full == "every_step"):
        return (True,) * N
    leads = scheduled or method.dominant_full == "every_step"
    return tuple(leads and j == leader for j in range(N))


def _early_steps(fraction: float, T: int) -> int:
    # Rounded first: 0.28 * 25 is 7.000000000000001 in binary and would give 8.
    return math.ceil(round(fraction * T, 9))


def _changes(T: int) -> range:
    return range(0, T, max(1, round(0.1 * T)))


def _measure(method: CMLoRA, early_steps: int) -> Measure:
    return Measure(
        method.threshold, method.cutoff, method.amplitude == "log", method.latch, early_steps
    )
