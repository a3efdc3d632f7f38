"""One call of a pipeline: follows the plan image by image and keeps what must not outlive it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .contrast import ContrastStep
from .records import StepRecord, Summary
from .regions import pixel_shares
from .schedule import Plan
from .stepplan import Choice, Walk
from .unet.cache import FeatureCache
from .unet.rows import StepRows

__all__ = ["Decision", "Run"]

BASE = "__base__"  # PEFT's name for a row without adapters


@dataclass(frozen=True)
class Decision:
    """What one UNet call does: its rows, and the weights of their predictions.

    ``weights`` (groups, batch), or with masks (groups, batch, H, W).
    """

    rows: StepRows
    weights: Tensor | None  # None: one row per sample, taken as it is
    mean_weights: list[list[float]] | None  # with masks: over the pixels, per sample
    choices: tuple[Choice, ...]
    early: tuple[bool | None, ...]
    images: int


@dataclass
class Run:
    """State of one pipeline call.

    Args:
        plan: The schedule.
        order: Evaluations per step of the scheduler.
        summary: Filled as the run goes.
        cache: Cached features, None if the run keeps none.
        calls: UNet calls that the scheduler has answered.
    """

    plan: Plan
    order: int
    expected: int
    summary: Summary
    cache: FeatureCache | None
    record: bool = False
    masks_of_subsets: Tensor | None = None
    calls: int = 0
    images: int = 0
    started: float = field(default_factory=time.perf_counter)
    batch: int = 0
    walks: list[Walk] = field(default_factory=list)
    readings: list[float] | None = None
    profiles: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    features: list[dict[str, Tensor]] = field(default_factory=list)
    _weights: dict[tuple, tuple] = field(default_factory=dict)
    _decided: tuple[int, tuple] | None = None
    _call_started: float = 0.0

    def __post_init__(self) -> None:
        self.walks = self.walks or [Walk(self.plan)]

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
                self.cache = FeatureCache(self.cache.cut)

    def decide(self, batch: int, images: int, device: torch.device) -> Decision:
        """Rows and weights of the next UNet call for ``batch`` samples of ``images`` images."""
        chosen = self._choose()
        if len(chosen) != images:
            chosen = chosen[:1] * images
        choices, early = zip(*chosen, strict=True)
        groups = self.plan.steps[self.step].groups
        deep = []
        for position in range(len(groups)):
            for sample in range(batch):
                row = position * batch + sample
                refresh = choices[sample % images].refresh[position]
                if self.cache is None or refresh or row not in self.cache.filled:
                    deep.append(row)
        shares = tuple(choices[sample % images].weights for sample in range(batch))
        rows = StepRows(groups, batch, tuple(deep))
        weights, means = self._weigh(shares, groups, device)
        return Decision(rows, weights, means, choices, early, images)

    def _choose(self) -> tuple[tuple[Choice, bool | None], ...]:
        """Choices of this step per image; the evaluations of one step share them."""
        if self._decided is None or self._decided[0] != self.calls // self.order:
            step = self.step
            readings = self.readings or [None] * len(self.walks)
            chosen = tuple(
                walk.choose(step, reading)
                for walk, reading in zip(self.walks, readings, strict=True)
            )
            self._decided = (self.calls // self.order, chosen)
        elif self.calls % self.order and self.cache is not None:
            # The first evaluation of this step has refreshed already.
            return tuple((_without_refresh(choice), early) for choice, early in self._decided[1])
        return self._decided[1]

    def _weigh(
        self, shares: tuple, groups: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor | None, list[list[float]] | None]:
        """``Decision.weights`` and ``mean_weights`` for the shares of every sample."""
        if all(len(share) == 1 and share[0] == 1.0 for share in shares):
            return None, None
        key = shares, groups
        if key not in self._weights:
            weights = torch.tensor(shares, dtype=torch.float32, device=device).t().contiguous()
            means = None
            if self.masks_of_subsets is not None:
                weights = pixel_shares(weights, self.masks_of_subsets[list(groups)])
                means = weights.mean((2, 3)).t().tolist()
            self._weights[key] = weights, means
        return self._weights[key]

    def note(self, decision: Decision, timestep: float, started: float) -> None:
        """Add this call to the summary."""
        rows = decision.rows
        names = [_label(self.plan.subsets[group]) for group in rows.groups]
        images = [_image_record(self, decision, image, names) for image in range(decision.images)]
        record = StepRecord(
            index=len(self.summary.steps),
            timestep=timestep,
            full_rows=len(rows.deep),
            shallow_rows=rows.count - len(rows.deep),
            per_image=images if len(images) > 1 else [],
            **images[0],
        )
        self.summary.steps.append(record)
        self._call_started = started

    def note_contrast(self, step: ContrastStep, adapters: Sequence[str | None]) -> None:
        """Add what a step of CLoRA found to its record."""
        names = [name or BASE for name in adapters]
        record = self.summary.steps[-1]
        record.loss = step.losses[0] if step.losses else ()
        record.weights = _summed(names, step.shares[0])
        areas = step.masks.mean((2, 3)).t().tolist()
        record.mask_area = _summed(names, areas[0])
        losses = step.losses or [()] * len(areas)
        for image, shares, area, loss in zip(
            record.per_image, step.shares, areas, losses, strict=False
        ):
            image |= {
                "weights": _summed(names, shares),
                "mask_area": _summed(names, area),
                "loss": loss,
            }
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
            readings = mean.tolist()
            if self.summary.steps:
                self.summary.steps[-1].amplitude = readings[0]
            if self.record:
                self.profiles.append(profile[0].cpu())
            if measure is not None:
                self._take_readings(readings)
        if self.summary.steps:
            now = time.perf_counter()
            self.summary.steps[-1].milliseconds = 1e3 * (now - self._call_started)
            self.summary.seconds = now - self.started
        self.calls += 1

    def _take_readings(self, readings: list[float]) -> None:
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
        for image, reading in zip(self.summary.steps[-1].per_image, readings, strict=False):
            image["amplitude"] = reading

    def keep_features(self, decision: Decision) -> None:
        """Recorded: the features that entered the up block at this call, by adapter."""
        batch, kept = decision.rows.batch, {}
        for position, group in enumerate(decision.rows.groups):
            rows = self.cache.features[position * batch : (position + 1) * batch]
            kept[_label(self.plan.subsets[group])] = rows.detach().cpu().clone()
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
                name: torch.stack([kept[name] for kept in self.features if name in kept])
                for name in names
            }


def _without_refresh(choice: Choice) -> Choice:
    return Choice(choice.dominant, (False,) * len(choice.refresh), choice.weights)


def _summed(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Name -> sum of its values: an adapter may have several rows."""
    totals = dict.fromkeys(names, 0.0)
    for name, value in zip(names, values, strict=True):
        totals[name] += value
    return totals


def _label(subset: tuple[str, ...]) -> str:
    return "+".join(subset) if subset else BASE


def _image_record(run: Run, decision: Decision, image: int, names: list[str]) -> dict:
    choice, rows = decision.choices[image], decision.rows
    shares = choice.weights if decision.mean_weights is None else decision.mean_weights[image]
    refreshed = {
        row // rows.batch for row in rows.deep if row % rows.batch % decision.images == image
    }
    subsets = [run.plan.subsets[group] for group in rows.groups]
    return {
        "dominant": choice.dominant,
        "early": decision.early[image],
        "refreshed": tuple(dict.fromkeys(n for p in sorted(refreshed) for n in subsets[p])),
        "weights": _named_weights(subsets, names, shares),
    }


def _named_weights(
    subsets: list[tuple[str, ...]], names: list[str], shares: tuple[float, ...]
) -> dict[str, float]:
    """Adapter -> share; the adapters of a merged row share its weight evenly."""
    weights = {}
    for subset, name, share in zip(subsets, names, shares, strict=True):
        for member in subset or (name,):
            weights[member] = share / max(1, len(subset))
    return weights
