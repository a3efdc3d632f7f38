"""Follows a plan on the device: what an image decides never comes back to the host.

``stepplan.Walk`` does the same on the host; the two agree choice by choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..ops.tensors import plain_tensors
from ..schedule import Choice, Plan
from ..unet.rows import RowTable

__all__ = ["DeviceWalk", "DeviceWalks", "walks_on_device"]


def walks_on_device(plans: Sequence[Plan]) -> bool:
    """Whether rows of every step are all subsets in order, and as many refreshed in either stage.

    For all images alike. Ages of caches are not followed: how many rows they refresh depends on the
    image.
    """
    if len(plans) > 1:
        return False
    (plan,) = plans
    everyone = tuple(range(len(plan.subsets)))
    return plan.max_age is None and all(
        step.groups == everyone and len({sum(choice.refresh) for choice in _stages(step)}) == 1
        for step in plan.steps
    )


class DeviceWalks:
    """Keeps the last walk: an equal plan need not be brought over again."""

    def __init__(self) -> None:
        self._kept: DeviceWalk | None = None

    def along(self, plan: Plan, device: torch.device) -> DeviceWalk:
        """A walk at its beginning."""
        if self._kept is None or (self._kept.plan, self._kept.device) != (plan, device):
            self._kept = DeviceWalk(plan, device)
        self._kept.restart()
        return self._kept


@dataclass
class _Tables:
    """A step's choices: ``shares`` [2, J] and ``places`` [2, F], late and early."""

    shares: Tensor
    places: Tensor
    early_when_nan: bool
    decides: bool


class DeviceWalk:
    """All images of a run; their stages stay on the device.

    ``blends``: shares say something; else there is one prediction, taken as it is. ``early``: int32
    (images,), their stages.
    What ``choose`` returns is memory that the next call of equal sizes writes again.
    """

    def __init__(self, plan: Plan, device: torch.device):
        self.plan, self.device = plan, device
        self.blends = any(
            choice.weights != (1.0,) for step in plan.steps for choice in _stages(step)
        )
        with plain_tensors():  # the next call may come in another grad mode
            self._tables = _upload(plan, device)
        self.restart()
        self._weights: dict[tuple[int, int], Tensor] = {}
        self._deep: dict[tuple[int, int, int], RowTable] = {}

    def restart(self) -> None:
        """All images are early again."""
        with plain_tensors():
            self.early = torch.ones(1, dtype=torch.int32, device=self.device)

    def refreshed(self, i: int) -> int:
        """Subsets per image whose deep part runs at step ``i``."""
        return self._tables[i].places.shape[1]

    def choose(
        self, i: int, batch: int, images: int, reading: Tensor | None
    ) -> tuple[Tensor, RowTable | None]:
        """Shares (J, batch) of step ``i`` and its deep rows, None for all of them and for none.

        Args:
            i: Step index; call once per step, in order.
            batch: Samples of the UNet call, of ``images`` images.
            reading: High-frequency means (images,) of the latents that the step before returned.
        """
        with plain_tensors():
            return self._choose(self._tables[i], batch, images, reading)

    def _choose(
        self, tables: _Tables, batch: int, images: int, reading: Tensor | None
    ) -> tuple[Tensor, RowTable | None]:
        measure = self.plan.measure
        self.early = _resized(self.early, images)
        weights = self._weights_for(batch)
        deep = self._deep_for(tables.places.shape[1], batch, images)
        decides = tables.decides and reading is not None
        if decides and measure.first_image_only:
            reading = reading[:1]
        rules = (0.0,) if measure is None else (measure.threshold, measure.latch)
        ops.decide_(
            self.early,
            weights,
            deep.memory,
            _resized(reading, images) if decides else None,
            tables.shares,
            tables.places,
            *rules,
            nan_early=tables.early_when_nan,
        )
        return weights, deep if 0 < deep.runs < images * len(self.plan.subsets) else None

    def _weights_for(self, batch: int) -> Tensor:
        key = len(self.plan.subsets), batch
        if key not in self._weights:
            self._weights[key] = torch.empty(key, device=self.device)
        return self._weights[key]

    def _deep_for(self, places: int, batch: int, images: int) -> RowTable:
        key = places, batch, images
        if key not in self._deep:
            table = torch.empty(3, places * batch, dtype=torch.int32, device=self.device)
            samples = tuple(
                sample
                for image in range(images)
                for _ in range(places)
                for sample in range(image, batch, images)
            )
            self._deep[key] = RowTable.of_memory(table, samples, images * places)
        return self._deep[key]


def _resized(per_image: Tensor, images: int) -> Tensor:
    """Further images go the way of the first."""
    count = per_image.numel()
    if count == images:
        return per_image
    more = per_image[:1].expand(max(0, images - count))
    return torch.cat([per_image[:images], more])


def _stages(step) -> tuple[Choice, Choice]:
    return step.early if step.late is None else step.late, step.early


def _upload(plan: Plan, device: torch.device) -> list[_Tables]:
    """The tables of all steps, brought to the device at once."""
    measure = plan.measure
    shares = torch.tensor([[choice.weights for choice in _stages(step)] for step in plan.steps])
    shares = shares.to(device)
    places = [
        [[j for j, fresh in enumerate(choice.refresh) if fresh] for choice in _stages(step)]
        for step in plan.steps
    ]
    sizes = [2 * len(late) for late, _ in places]
    flat = torch.tensor([j for pair in places for row in pair for j in row], dtype=torch.int32)
    return [
        _Tables(
            shares[i],
            piece.view(2, sizes[i] // 2),
            measure is not None and not measure.nan_is_late and i < measure.early_steps,
            plan.steps[i].decides,
        )
        for i, piece in enumerate(flat.to(device).split(sizes))
    ]
