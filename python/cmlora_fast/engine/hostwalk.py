"""Follows the plans of a run on the host, image by image, and fills its row tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..schedule import Choice, Measure, Plan, Walk
from ..unet.rows import RowTable
from .settings import BASE

__all__ = ["Chosen", "HostWalk"]

# What an image does at a step, by which plan, and whether that is early.
Chosen = tuple[Plan, Choice, bool | None]


class HostWalk:
    """The images of a call, each along its plan.

    Args:
        plans: One for all images, or one per image.
        order: Evaluations per step of the scheduler, which share its choice.
        keeps_batch: Samples of one subset run their deep part together or not at all.
    """

    def __init__(self, plans: Sequence[Plan], order: int, keeps_batch: bool = False):
        self.plans, self.order, self.keeps_batch = tuple(plans), order, keeps_batch
        self.subsets = tuple(dict.fromkeys(s for plan in plans for s in plan.subsets))
        self.reuse = any(plan.reuse for plan in plans)
        self._position = {subset: position for position, subset in enumerate(self.subsets)}
        self._walks = [Walk(plan) for plan in plans]
        self._readings: list[float] | None = None
        self._chosen: tuple[int, tuple[Chosen, ...]] | None = None
        self._slots: dict[int, dict[tuple[int, int], int]] = {}  # by batch
        self._layouts: dict[tuple, tuple[RowTable, list[tuple[int, int]]]] = {}
        self._tables: dict[tuple, RowTable] = {}

    @property
    def measure(self) -> Measure | None:
        """How the latents decide, where they do."""
        return next((plan.measure for plan in self.plans if plan.measure is not None), None)

    def resume(self, before: HostWalk) -> None:
        """Go on where a walk of other adapters has come to."""
        if len(self.plans) == 1:
            self._walks = [self._walks[0].fork() for _ in before._walks]
        for walk, other in zip(self._walks, before._walks, strict=False):
            walk.early = other.early
        known = before._readings or ()
        self._readings = before._readings if len(known) == len(self._walks) else None

    def step(self, call: int) -> int:
        """Plan step of a UNet call."""
        return min(call // self.order, len(self.plans[0].steps) - 1)

    def groups(self, call: int, plan: Plan) -> tuple[int, ...]:
        """Subsets that an image along ``plan`` runs, by position among those of the run."""
        own = plan.steps[self.step(call)].groups
        return tuple(self._position[plan.subsets[group]] for group in own)

    def pairs(self, batch: int, images: int) -> list[tuple[int, int]]:
        """(subset, sample) of every row that the run may need, in order."""
        plans = self._per_image(self.plans, images)
        carried = [[self._position[s] for s in plan.subsets] for plan in plans]
        return sorted({(s, n) for n in range(batch) for s in carried[n % images]})

    def choose(self, call: int, images: int, cached: bool) -> tuple[Chosen, ...]:
        """What every image does at a call; where features are ``cached``, a step's first
        evaluation has refreshed them for the others."""
        turn = call // self.order
        first = self._chosen is None or self._chosen[0] != turn
        if first:
            readings = self._readings or [None] * len(self._walks)
            pairs = zip(self._walks, readings, strict=True)
            step = self.step(call)
            self._chosen = turn, tuple((w.plan, *w.choose(step, r)) for w, r in pairs)
        chosen = self._chosen[1]
        if not first and call % self.order and cached:
            chosen = tuple((plan, _without_refresh(c), early) for plan, c, early in chosen)
        return self._per_image(chosen, images)

    def _per_image(self, values: tuple, images: int) -> tuple:
        """Further images go the way of the first, unless each has its plan."""
        if len(values) == images:
            return values
        if len(self.plans) > 1:
            raise ValueError(
                f"adapter_names: expected a batch of {len(self.plans)} images, one per entry; "
                f"got {images}"
            )
        return values[:1] * images

    def table(
        self,
        call: int,
        batch: int,
        chosen: Sequence[Chosen],
        filled: set[int] | None,
        share_of: Callable[[RowTable, Sequence[float]], Tensor],
    ) -> RowTable:
        """Rows of a call for ``batch`` samples.

        Args:
            call: Number of the UNet call.
            batch: Its samples.
            chosen: What every image does.
            filled: Slots whose cached features are valid; None where none are kept.
            share_of: ``RowTable.share`` of a table whose rows have these weights.
        """
        images, groups = len(chosen), tuple(self.groups(call, plan) for plan, _, _ in chosen)
        if (batch, groups) not in self._layouts:
            self._layouts[batch, groups] = self._layout(groups, batch)
        table, owners = self._layouts[batch, groups]
        choices, deep = [choice for _, choice, _ in chosen], table.deep
        if filled is not None:
            wanted = [choice.refresh for choice in choices]
            if self.keeps_batch:
                wanted = [tuple(map(any, zip(*wanted, strict=True)))] * images
            deep = tuple(
                row
                for row, (n, j) in enumerate(owners)
                if wanted[n % images][j] or table.slot[row] not in filled
            )
        weights = tuple(choices[n % images].weights[j] for n, j in owners)
        key = batch, groups, deep, weights
        if key not in self._tables:
            alone = len(table) == batch and set(weights) == {1.0}
            share = None if alone else share_of(table, weights)
            self._tables[key] = replace(table, deep=deep, share=share)
        return self._tables[key]

    def _layout(
        self, groups: Sequence[tuple[int, ...]], batch: int
    ) -> tuple[RowTable, list[tuple[int, int]]]:
        """The rows, all deep, in the order of their subsets; and (sample, j) of each."""
        images = len(groups)
        rows = sorted((s, n, j) for n in range(batch) for j, s in enumerate(groups[n % images]))
        owners = [(n, j) for _, n, j in rows]
        slots = self._slots.setdefault(batch, {owner: row for row, owner in enumerate(owners)})
        text = {pair: place for place, pair in enumerate(self.pairs(batch, images))}
        table = RowTable(
            sample=tuple(n for _, n, _ in rows),
            subset=tuple(s for s, _, _ in rows),
            text=tuple(text[s, n] for s, n, _ in rows),
            slot=tuple(slots[owner] for owner in owners),
            slots=len(rows),
            deep=tuple(range(len(rows))),
        )
        return table, owners

    def rests(self, call: int) -> bool:
        """Whether no row of a call is real."""
        real = (plan.steps[self.step(call)].real for plan in self.plans)
        return all(rows is not None and not any(rows) for rows in real)

    def real_rows(self, call: int, table: RowTable, images: int) -> tuple[int, ...]:
        """Rows of a call's table that the UNet runs; the others are forecast."""
        wanted = []
        for plan in self._per_image(self.plans, images):
            groups, real = self.groups(call, plan), plan.steps[self.step(call)].real
            wanted.append({g for j, g in enumerate(groups) if real is None or real[j]})
        pairs = zip(table.subset, table.sample, strict=True)
        return tuple(row for row, (s, n) in enumerate(pairs) if s in wanted[n % images])

    def records(
        self, call: int, table: RowTable, chosen: Sequence[Chosen], means: Tensor | None
    ) -> list[dict[str, Any]]:
        """The deciding fields of a call's record, per image.

        ``means`` (J, batch): shares of a sample's j-th rows over the pixels, where those differ.
        """
        found, by_pixel = [], None if means is None else means.t().tolist()
        for image, (plan, choice, early) in enumerate(chosen):
            groups = self.groups(call, plan)
            if isinstance(table.deep, RowTable):
                fresh = {group for group, new in zip(groups, choice.refresh, strict=True) if new}
            else:
                deep = (row for row in table.deep if table.sample[row] % len(chosen) == image)
                fresh = {table.subset[row] for row in deep}
            shares = dict(zip(groups, choice.weights, strict=True))
            if by_pixel is not None:
                rows = dict.fromkeys(line[image] for line in table.by_sample)
                pairs = zip(rows, by_pixel[image], strict=False)
                shares = {table.subset[row]: share for row, share in pairs}
            members = {group: self.subsets[group] for group in groups}
            refreshed = (name for group in groups if group in fresh for name in members[group])
            weights = {  # the adapters of a merged row share its weight evenly
                name: shares[group] / max(1, len(names))
                for group, names in members.items()
                for name in names or (BASE,)
            }
            told = {"dominant": choice.dominant, "early": early}
            told |= {"refreshed": tuple(dict.fromkeys(refreshed)), "weights": weights}
            found.append(told)
        return found

    def read(self, readings: list[float]) -> list[float]:
        """Take the measure of every image after a step; those that decide are returned."""
        measure = self.measure
        if measure.first_image_only:
            readings = readings[:1]
        elif any(reading != reading for reading in readings):
            warnings.warn(
                "CMLoRA online: the high-frequency mean of the latents is NaN; the stage follows "
                "stage_fraction instead",
                stacklevel=2,
            )
        if len(self.plans) == 1:
            while len(self._walks) < len(readings):  # each image by itself from here on
                self._walks.append(self._walks[0].fork())
            self._walks = self._walks[: len(readings)]
        count = len(self._walks)
        self._readings = readings if len(readings) == count else readings[:1] * count
        return readings


def _without_refresh(choice: Choice) -> Choice:
    return replace(choice, refresh=(False,) * len(choice.refresh))
