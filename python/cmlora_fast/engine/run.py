"""One call of a pipeline: follows the plan image by image and keeps what must not outlive it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import ops
from ..clora.masks import pixel_shares
from ..clora.step import ContrastStep
from ..schedule import Choice, Plan, Walk
from ..unet.cache import FeatureCache
from ..unet.rows import DeepTable, StepRows
from .decision import BASE, Decision, image_record, label, summed
from .devicewalk import DeviceWalk
from .summary import StepRecord, Summary

__all__ = ["Run"]


@dataclass
class Run:
    """State of one pipeline call.

    Args:
        plan: The schedule.
        order: Evaluations per step of the scheduler.
        summary: Filled as the run goes.
        cache: Cached features, None if the run keeps none.
        keeps_batch: Samples of one adapter run their deep part together or not at all.
        on_device: Decides where the host shall not wait for the device.
        lazy: What the device knows is written into the summary by ``settle``, not at each step.
        calls: UNet calls that the scheduler has answered.
    """

    plan: Plan
    order: int
    expected: int
    summary: Summary
    cache: FeatureCache | None
    record: bool = False
    keeps_batch: bool = False
    masks_of_subsets: Tensor | None = None
    on_device: DeviceWalk | None = None
    lazy: bool = False
    calls: int = 0
    images: int = 0
    started: float = field(default_factory=time.perf_counter)
    batch: int = 0
    walks: list[Walk] = field(default_factory=list)
    readings: list[float] | None = None
    reading: Tensor | None = None
    profiles: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    features: list[dict[str, Tensor]] = field(default_factory=list)
    _weights: dict[tuple, Tensor] = field(default_factory=dict)
    _chosen: tuple[int, tuple] | None = None
    _decided: tuple[Tensor, DeepTable | None] | None = None
    _pending: list[Callable[[], None]] = field(default_factory=list)
    _call_started: float = 0.0

    def __post_init__(self) -> None:
        self.walks = self.walks or [Walk(self.plan)]
        self.cached = self.cache is not None

    @property
    def finished(self) -> bool:
        return self.calls >= self.expected

    @property
    def step(self) -> int:
        """Plan step of the next UNet call; a scheduler may evaluate several times per step."""
        return min(self.calls // self.order, len(self.plan.steps) - 1)

    def begin_batch(self, batch: int) -> None:
        """Features of another batch size are of no use."""
        if batch != self.batch:
            self.batch = batch
            if self.cache is not None:
                self.cache = self.cache.empty()

    def decide(self, batch: int, images: int, device: torch.device) -> Decision:
        """Rows and weights of the next UNet call for ``batch`` samples of ``images`` images."""
        if self.on_device is not None:
            return self._decide_on_device(batch, images)
        chosen = self._choose(self.calls, images)
        choices = [choice for choice, _ in chosen]
        groups = self.plan.steps[self.step].groups
        deep = []
        for position in range(len(groups)):
            anyone = self.keeps_batch and any(choice.refresh[position] for choice in choices)
            for sample in range(batch):
                row = position * batch + sample
                refresh = anyone or choices[sample % images].refresh[position]
                if self.cache is None or refresh or row not in self.cache.filled:
                    deep.append(row)
        shares = tuple(choices[sample % images].weights for sample in range(batch))
        rows = StepRows(groups, batch, tuple(deep))
        return Decision(rows, self._weigh(shares, groups, device), images, chosen)

    def _decide_on_device(self, batch: int, images: int) -> Decision:
        walk, groups = self.on_device, self.plan.steps[self.step].groups
        # The evaluations of one step share its choice.
        if self.calls % self.order == 0 or self._decided[0].shape[1] != batch:
            self._decided = walk.choose(self.step, batch, images, self.reading)
        (weights, deep), count = self._decided, len(groups) * batch
        if self.cache is None or len(self.cache.filled) < count:
            deep = tuple(range(count))
        elif self.calls % self.order:
            deep = ()
        elif deep is None:
            deep = tuple(range(count)) if walk.refreshed(self.step) else ()
        if self.masks_of_subsets is not None:
            weights = pixel_shares(weights, self.masks_of_subsets)
        rows = StepRows(groups, batch, deep)
        return Decision(rows, weights if walk.blends else None, images, None)

    def _choose(self, call: int, images: int) -> tuple[tuple[Choice, bool | None], ...]:
        """Choices of a call's step per image; the evaluations of one step share them."""
        turn = call // self.order
        first = self._chosen is None or self._chosen[0] != turn
        if first:
            step = min(turn, len(self.plan.steps) - 1)
            readings = self.readings or [None] * len(self.walks)
            chosen = tuple(
                walk.choose(step, reading)
                for walk, reading in zip(self.walks, readings, strict=True)
            )
            self._chosen = (turn, chosen)
        chosen = self._chosen[1]
        if not first and call % self.order and self.cached:
            # The first evaluation of this step has refreshed already.
            chosen = tuple((_without_refresh(choice), early) for choice, early in chosen)
        return chosen if len(chosen) == images else chosen[:1] * images

    def _weigh(self, shares: tuple, groups: tuple[int, ...], device: torch.device) -> Tensor | None:
        """``Decision.weights`` for the shares of every sample."""
        if all(len(share) == 1 and share[0] == 1.0 for share in shares):
            return None
        key = shares, groups
        if key not in self._weights:
            weights = torch.tensor(shares, dtype=torch.float32, device=device).t().contiguous()
            if self.masks_of_subsets is not None:
                weights = pixel_shares(weights, self.masks_of_subsets[list(groups)])
            self._weights[key] = weights
        return self._weights[key]

    def note(self, decision: Decision, timestep: Tensor | float, started: float) -> None:
        """Add this call to the summary."""
        rows = decision.rows
        record = StepRecord(
            index=len(self.summary.steps),
            timestep=math.nan,
            full_rows=len(rows.deep),
            shallow_rows=rows.count - len(rows.deep),
        )
        self.summary.steps.append(record)
        self._call_started = started
        means = None
        if decision.weights is not None and decision.weights.dim() == 4:
            means = decision.weights.mean((2, 3))
        if isinstance(timestep, Tensor):
            timestep = timestep.detach().flatten()[:1].clone()  # some pipelines write it again
        call = self.calls
        self._when_known(lambda: self._fill(record, decision, call, timestep, means))

    def _fill(
        self,
        record: StepRecord,
        decision: Decision,
        call: int,
        timestep: Tensor | float,
        means: Tensor | None,
    ) -> None:
        """Complete the record of a call. ``means`` (groups, batch): weights over the pixels."""
        record.timestep = float(timestep)
        chosen = decision.chosen or self._choose(call, decision.images)
        shares = [choice.weights for choice, _ in chosen] if means is None else means.t().tolist()
        images = [
            image_record(self.plan, decision, image, chosen[image], shares[image])
            for image in range(decision.images)
        ]
        record.per_image = images if len(images) > 1 else []
        for name, value in images[0].items():
            setattr(record, name, value)

    def _when_known(self, write: Callable[[], None]) -> None:
        if self.lazy:
            self._pending.append(write)
        else:
            write()

    def settle(self) -> None:
        """Complete the summary with what is known on the device; waits for it."""
        while self._pending:
            self._pending.pop(0)()

    def note_contrast(self, step: ContrastStep, adapters: Sequence[str | None]) -> None:
        """Add what a step of CLoRA found to its record."""
        record, names = self.summary.steps[-1], [name or BASE for name in adapters]
        losses, shares, areas = step.losses, step.shares, step.masks.mean((2, 3)).t()
        self._when_known(lambda: _fill_contrast(record, names, losses, shares, areas))
        if self.record:
            self.maps.append(step.maps.cpu())
            self.masks.append(step.masks[:, 0].cpu())

    def after_step(self, latents: Tensor) -> None:
        """Take the measure of the latents that ``scheduler.step`` returned, and move on."""
        self.images = len(latents)
        measure = self.plan.measure
        if measure is not None or self.record:
            cutoff = 0.2 if measure is None else measure.cutoff
            mean, profile = ops.radial_amplitude(
                latents.detach(), cutoff, measure is not None and measure.log
            )
            self.reading = mean
            record = self.summary.steps[-1] if self.summary.steps else None
            self._when_known(lambda: self._read(record, mean))
            if self.record:
                self.profiles.append(profile[0].cpu())
            if measure is not None and self.on_device is None:
                self.settle()  # the host decides
        if self.summary.steps:
            now = time.perf_counter()
            self.summary.steps[-1].milliseconds = 1e3 * (now - self._call_started)
            self.summary.seconds = now - self.started
        self.calls += 1

    def _read(self, record: StepRecord | None, mean: Tensor) -> None:
        """Keep the reading of a step, for its record and for the host's walks."""
        readings = mean.tolist()
        if record is not None:
            record.amplitude = readings[0]
        if self.plan.measure is not None:
            self._take_readings(record, readings)

    def _take_readings(self, record: StepRecord | None, readings: list[float]) -> None:
        measure = self.plan.measure
        if measure.first_image_only:
            readings = readings[:1]
        elif any(reading != reading for reading in readings):
            warnings.warn(
                "CMLoRA online: the high-frequency mean of the latents is NaN; the stage follows "
                "stage_fraction instead",
                stacklevel=2,
            )
        while len(self.walks) < len(readings):  # decisions are per image from the first reading on
            self.walks.append(self.walks[0].fork())
        self.walks = self.walks[: len(readings)]
        self.readings = readings
        for image, reading in zip(record.per_image if record else (), readings, strict=False):
            image["amplitude"] = reading

    def keep_features(self, decision: Decision) -> None:
        """Recorded: the features that entered the up block at this call, by adapter."""
        batch, kept = decision.rows.batch, {}
        for position, group in enumerate(decision.rows.groups):
            rows = self.cache.features[position * batch : (position + 1) * batch]
            kept[label(self.plan.subsets[group])] = rows.detach().cpu().clone()
        self.features.append(kept)

    def collect(self) -> None:
        """Move what was recorded to the summary."""
        for name in ("maps", "masks"):
            if getattr(self, name):
                setattr(self.summary, name, torch.stack(getattr(self, name)))
        if self.profiles:
            self.summary.profiles = torch.stack(self.profiles)
        if self.features:
            names = dict.fromkeys(name for kept in self.features for name in kept)
            self.summary.features = {
                name: _stacked([kept[name] for kept in self.features if name in kept])
                for name in names
            }


def _fill_contrast(
    record: StepRecord, names: Sequence[str], losses: Tensor | None, shares: Tensor, areas: Tensor
) -> None:
    """``losses`` (evaluations, images), ``shares`` and ``areas`` (images, rows)."""
    found = [
        {"weights": summed(names, share), "mask_area": summed(names, area), "loss": ()}
        for share, area in zip(shares.tolist(), areas.tolist(), strict=True)
    ]
    if losses is not None:
        for image, loss in zip(found, losses.t().tolist(), strict=True):
            image["loss"] = tuple(loss)
    for name, value in found[0].items():
        setattr(record, name, value)
    for image, mine in zip(record.per_image, found, strict=False):
        image |= mine


def _stacked(features: Sequence[Tensor]) -> Tensor:
    """(T, batch, ...). NaN where a call had fewer rows, which are the last: guidance was off."""
    return pad_sequence(features, True, float("nan"), padding_side="left")


def _without_refresh(choice: Choice) -> Choice:
    return Choice(choice.dominant, (False,) * len(choice.refresh), choice.weights)
