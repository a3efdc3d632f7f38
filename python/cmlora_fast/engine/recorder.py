"""Writes a call's summary: a record per UNet call, and the tensors that were asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import ops
from .settings import BASE
from .summary import StepRecord, Summary

__all__ = ["Recorder", "label", "summed"]

Images = list[dict[str, Any]]  # the deciding fields of a record, per image


class Recorder:
    """Fills a summary as a run goes.

    Args:
        summary: The run's.
        record: Whether tensors are kept.
        lazy: What the device knows is written by ``settle``, not at each step.
    """

    def __init__(self, summary: Summary, record: bool = False, lazy: bool = False):
        self.summary, self.record, self._lazy = summary, record, lazy
        self._started = self._step_started = time.perf_counter()
        self._pending: list[Callable[[], None]] = []
        self._asked: list[Tensor] = []
        self._read: list[list[float]] = []  # of those asked for, as many as are known by now
        self._kept: dict[str, list[Any]] = {}

    def begin_step(self) -> None:
        """The UNet is called."""
        self._step_started = time.perf_counter()

    def note(
        self, full: int, shallow: int, timestep: Tensor | float, find: Callable[[], Images]
    ) -> None:
        """A record of this call and its rows; ``find`` gives its fields, once they are known."""
        rows = {"full_rows": full, "shallow_rows": shallow}
        record = StepRecord(len(self.summary.steps), math.nan, **rows)
        self.summary.steps.append(record)
        if isinstance(timestep, Tensor):
            # some pipelines write it again
            first = self._later(timestep.detach().flatten()[:1].clone())
        else:
            first = lambda: [float(timestep)]  # noqa: E731

        def begin() -> Images:
            images = find()
            (record.timestep,) = first()
            record.per_image = [{} for _ in images] if len(images) > 1 else []
            return images

        self.add(begin)

    def add(self, find: Callable[[], Images]) -> None:
        """More fields of the newest record."""
        record = self.summary.steps[-1] if self.summary.steps else None

        def write() -> None:
            images = find()
            if record is None:
                return
            for name, value in images[0].items():
                setattr(record, name, value)
            for mine, found in zip(record.per_image, images, strict=False):
                mine |= found

        if self._lazy:
            self._pending.append(write)
        else:
            write()

    def read(
        self,
        latents: Tensor,
        cutoff: float = 0.2,
        log: bool = False,
        take: Callable[[list[float]], list[float]] | None = None,
    ) -> Tensor:
        """The high-frequency means (images,) of the latents that a step returned.

        ``take`` gets them once they are known, and returns those that the record tells.
        """
        mean, profile = ops.radial_amplitude(latents.detach(), cutoff, log)

        means = self._later(mean)

        def found() -> Images:
            readings = means()
            return [{"amplitude": reading} for reading in (take(readings) if take else readings)]

        self.add(found)
        if self.record:
            self.keep("profiles", profile[0].cpu())
        return mean

    def end_step(self) -> None:
        """The scheduler has answered."""
        if self.summary.steps:
            now = time.perf_counter()
            self.summary.steps[-1].milliseconds = 1e3 * (now - self._step_started)
            self.summary.seconds = now - self._started

    def settle(self) -> None:
        """Complete the records with what is known on the device; waits for it."""
        while self._pending:
            self._pending.pop(0)()

    def _later(self, values: Tensor) -> Callable[[], list[float]]:
        """The numbers of a vector, which are read with all others asked for by then, at once."""
        place = len(self._asked)
        self._asked.append(values)

        def read() -> list[float]:
            if place >= len(self._read):
                self._read += _numbers(self._asked[len(self._read) :])
            return self._read[place]

        return read

    def keep(self, name: str, value: Any) -> None:
        """A recorded tensor of this step, or those of its adapters by name."""
        self._kept.setdefault(name, []).append(value)

    def collect(self) -> None:
        """Move what was recorded to the summary."""
        for name, kept in self._kept.items():
            if isinstance(kept[0], Tensor):
                setattr(self.summary, name, torch.stack(kept))
                continue
            members = dict.fromkeys(member for step in kept for member in step)
            each = {m: [step[m] for step in kept if m in step] for m in members}
            setattr(self.summary, name, {m: _stacked(steps) for m, steps in each.items()})


def _stacked(features: Sequence[Tensor]) -> Tensor:
    """(T, batch, ...). NaN where a call had fewer rows, which are the last: guidance was off."""
    return pad_sequence(features, True, float("nan"), padding_side="left")


def _numbers(vectors: Sequence[Tensor]) -> list[list[float]]:
    """What stands in them, by one read per device."""
    read = {}
    for place in dict.fromkeys(t.device for t in vectors):
        wide = torch.float32 if place.type == "mps" else torch.float64  # so that none changes
        read[place] = iter(torch.cat([t.to(wide) for t in vectors if t.device == place]).tolist())
    return [[*islice(read[t.device], len(t))] for t in vectors]


def label(subset: tuple[str, ...]) -> str:
    return "+".join(subset) if subset else BASE


def summed(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Name -> sum of its values: an adapter may have several rows."""
    totals = dict.fromkeys(names, 0.0)
    for name, value in zip(names, values, strict=True):
        totals[name] += value
    return totals
