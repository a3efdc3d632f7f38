"""What a schedule is made of, and how one image follows it. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Choice", "Measure", "Plan", "StepPlan", "Walk", "last_only", "shares", "singles"]


@dataclass(frozen=True)
class Choice:
    """What one step does in one stage. Tuples run over the groups of the step.

    Args:
        dominant: Name of the leading adapter, None where none leads.
        refresh: Whether the deep part of that group runs.
        weights: Shares of the combined prediction.
    """

    dominant: str | None
    refresh: tuple[bool, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class StepPlan:
    """One step: the adapter subsets that run, and what to do when early and when late.

    ``groups`` are indices into ``Plan.subsets``. ``late`` is None where the step has no choice.
    ``real`` says which of them the UNet runs for, None: all; the others are forecast.
    ``stage`` is the stage if the step number fixes it, None if there are none or an image decides;
    ``decides`` says whether the stage may change at this step.
    """

    groups: tuple[int, ...]
    early: Choice
    late: Choice | None = None
    stage: bool | None = None
    decides: bool = False
    real: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Measure:
    """How the online variant reads the latents and turns the reading into a stage.

    The first ``early_steps`` are early by step number, the documented fallback for a NaN reading.
    """

    threshold: float
    cutoff: float
    log: bool
    latch: bool
    early_steps: int
    first_image_only: bool = False
    nan_is_late: bool = False


@dataclass(frozen=True)
class Plan:
    """A whole run. ``subsets`` are the distinct adapter subsets that rows of the run can carry."""

    subsets: tuple[tuple[str, ...], ...]
    steps: tuple[StepPlan, ...]
    reuse: bool
    measure: Measure | None = None
    max_age: int | None = None

    def work(self, shallow: float) -> float:
        """UNet calls of one sample that a run takes, of which one from the cache is ``shallow``.

        Of images that are early wherever they decide; caches of any age.
        """
        total = 0.0
        for step in self.steps:
            real = step.real or (True,) * len(step.groups)
            for runs, fresh in zip(real, step.early.refresh, strict=True):
                total += runs * (1.0 if fresh else shallow)
        return total


def singles(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((name,) for name in names)


def last_only(N: int) -> tuple[float, ...]:
    return (0.0,) * (N - 1) + (1.0,)


def shares(N: int, leader: int, coeff: float) -> tuple[float, ...]:
    """α/N of cmlora spec §1.6: they sum to 1 and the leader has ``coeff`` times another's share."""
    if N == 1:
        return (1.0,)
    total = coeff + N - 1
    return tuple((coeff if j == leader else 1.0) / total for j in range(N))


class Walk:
    """Follows a plan for one image: keeps its stage and the age of its caches."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.early = True
        self._refreshed_at: dict[int, int] = {}

    def fork(self) -> Walk:
        """A walk for another image that has gone the same way so far."""
        walk = Walk(self.plan)
        walk.early, walk._refreshed_at = self.early, dict(self._refreshed_at)
        return walk

    def choose(self, i: int, reading: float | None = None) -> tuple[Choice, bool | None]:
        """Choice and stage of step ``i`` (call once per step, in order).

        Args:
            i: Step index.
            reading: High-frequency mean of the latents that the step before returned; None at
                step 0, which is early.
        """
        step = self.plan.steps[i]
        if step.late is None:
            choice, stage = step.early, step.stage
        else:
            if step.decides and reading is not None:
                self._decide(i, reading)
            choice, stage = (step.early if self.early else step.late), self.early
        return self._refresh_old(i, step.groups, choice), stage

    def _decide(self, i: int, reading: float) -> None:
        measure = self.plan.measure
        if math.isnan(reading) and not measure.nan_is_late:
            early = i < measure.early_steps
        else:
            early = reading >= measure.threshold
        self.early = early and (self.early or not measure.latch)

    def _refresh_old(self, i: int, groups: tuple[int, ...], choice: Choice) -> Choice:
        if self.plan.max_age is None:
            return choice
        refresh = tuple(
            fresh or i - self._refreshed_at.get(group, i) > self.plan.max_age
            for group, fresh in zip(groups, choice.refresh, strict=True)
        )
        self._refreshed_at.update({g: i for g, r in zip(groups, refresh, strict=True) if r})
        return Choice(choice.dominant, refresh, choice.weights)
